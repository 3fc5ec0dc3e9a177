// What clients send that upstream's handlers do not take, in words that they do: nulls, a tool that is chosen by its name.

#pragma once

class common_json;

// Whether the body was changed. Throws pyskip_refusal for what cannot be put so.
bool pyskip_tidy(common_json & body);
