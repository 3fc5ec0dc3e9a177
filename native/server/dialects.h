// What requests of several APIs say that upstream passes over, in words that it reads; what it would answer wrongly is refused.

#pragma once

#include <string>

class common_json;

// By the path: /responses, /messages, /completions, /embeddings. Whether the body was changed. Throws pyskip_refusal.
bool pyskip_dialect(const std::string & path, common_json & body);

// Upstream makes a body of its own of one of Anthropic's, of the fields that it knows: carries over what it lacks.
void pyskip_messages_carry(const common_json & body, common_json & converted);
