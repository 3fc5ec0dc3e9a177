// Schemas that would become grammars without end: refused before they reach the converter, which writes a rule for each
// repetition.

#pragma once

class common_json;

// The schemas of a request for text, and its grammar. Throws pyskip_refusal.
void pyskip_schema_check(const common_json & body);
