// A schema's `pattern` in words that upstream's converter holds: classes such as \d, and no sign that would end the JSON text.

#pragma once

#include <string>

// The same pattern, as far as it is one of the converter's kind; others are left as they are.
std::string pyskip_pattern_plain(const std::string & pattern);
