// JSON schemas as grammars, by upstream's converter (common/json-schema-to-grammar.cpp).

#pragma once

#include <string>

// Into `out`; or why that cannot be, as one line, and false. Throws what the converter throws.
bool pyskip_schema_to_gbnf(const std::string & schema, std::string & out);
