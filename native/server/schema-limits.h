// Schemas that would become grammars without end: refused before they reach the converter, which writes a rule for each
// repetition.

#pragma once

class common_json;

// Of a request for text. Throws pyskip_refusal.
void pyskip_schema_check(common_json & body);
