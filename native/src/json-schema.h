// JSON schemas as grammars, by upstream's converter (common/json-schema-to-grammar.cpp).

#pragma once

#include <string>

// Throws what the converter throws.
std::string pyskip_schema_to_gbnf(const std::string & schema);
