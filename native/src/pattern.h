// A schema's `pattern` in words that upstream's converter holds: classes such as \d, and no sign that would end the JSON text.
// Called by schema-check.cpp.

#pragma once

#include <string>

// The same pattern, as far as it is one of the converter's kind; others are left as they are.
std::string pyskip_pattern_plain(const std::string & pattern);

// Why the converter would take any text instead of a plain pattern, "" if it would not (_pattern_to_rule in
// common/json-schema-to-grammar.cpp).
std::string pyskip_pattern_unheld(const std::string & pattern);
