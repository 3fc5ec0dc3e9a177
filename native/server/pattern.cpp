#include "pattern.h"

#include <cstring>

// What a JSON text cannot hold unescaped, for a class that says what it is not.
static const char * const NO_TEXT = "\"\\\\\\x00-\\x1F";

// What \d, \w and \s stand for in a class.
static const char * members(char letter) {
    switch (letter) {
        case 'd':
        case 'D': return "0-9";
        case 'w':
        case 'W': return "A-Za-z0-9_";
        case 's':
        case 'S': return " "; // of all spaces the one that a JSON text holds as it is
        default: return nullptr;
    }
}

static bool is_negated(char letter) {
    return std::strchr("DWS", letter) != nullptr;
}

// A class, from its bracket at `at` on, which moves behind it.
static std::string plain_class(const std::string & pattern, size_t & at) {
    std::string out     = "[";
    size_t      i       = at + 1;
    const bool  negated = i < pattern.size() && pattern[i] == '^';
    if (negated) {
        out += std::string("^") + NO_TEXT;
        i++;
    }
    for (; i < pattern.size() && pattern[i] != ']'; ++i) {
        if (pattern[i] != '\\' || i + 1 == pattern.size()) {
            out += pattern[i];
            continue;
        }
        const char letter = pattern[++i];
        if (const char * named = members(letter); named && !is_negated(letter)) {
            out += named;
        } else if (std::strchr("./^$|()*+?{}:,;@#%&=!~'<> ", letter)) {
            out += letter; // escaped without need
        } else {
            out += '\\';
            out += letter;
        }
    }
    at = i;
    return out + (i < pattern.size() ? "]" : "");
}

std::string pyskip_pattern_plain(const std::string & pattern) {
    std::string out;
    for (size_t i = 0; i < pattern.size(); ++i) {
        const char c = pattern[i];
        if (c == '[') {
            out += plain_class(pattern, i);
        } else if (c == '.') {
            out += std::string("[^") + NO_TEXT + "]";
        } else if (c == '\\' && i + 1 < pattern.size()) {
            const char letter = pattern[++i];
            if (const char * named = members(letter)) {
                out += is_negated(letter) ? std::string("[^") + NO_TEXT + named + "]" : std::string("[") + named + "]";
            } else {
                out += c;
                out += letter;
            }
        } else {
            out += c;
        }
    }
    return out;
}
