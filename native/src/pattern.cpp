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

// How many characters an escape takes, 0 if grammars have none like it.
static size_t escape_length(const std::string & text, size_t at, const char * plain) {
    const char letter = at + 1 < text.size() ? text[at + 1] : '\0';
    if (letter != '\0' && std::strchr(plain, letter)) {
        return 2;
    }
    const size_t n_hex = letter == 'x' ? 2 : letter == 'u' ? 4 : letter == 'U' ? 8 : 0;
    if (n_hex == 0 || text.size() < at + 2 + n_hex) {
        return 0;
    }
    return text.find_first_not_of("0123456789abcdefABCDEF", at + 2) < at + 2 + n_hex ? 0 : 2 + n_hex;
}

std::string pyskip_pattern_unheld(const std::string & pattern) {
    if (pattern.size() < 2 || pattern.front() != '^' || pattern.back() != '$') {
        return "expected ^...$, the whole text";
    }
    const std::string inner    = pattern.substr(1, pattern.size() - 2);
    bool              in_class = false;
    for (size_t i = 0; i < inner.size(); ++i) {
        const char c = inner[i];
        if (c == '\\') {
            const size_t n = escape_length(inner, i, in_class ? "trn\\\"[]-" : "trn\\\"[]-^$.()|{}*+?");
            if (n == 0) {
                return "it has the escape " + inner.substr(i, 2);
            }
            i += n - 1;
        } else if (in_class) {
            in_class = c != ']';
        } else if (c == '[') {
            in_class = true;
        } else if (c == '^' || c == '$') {
            return "it has an anchor inside";
        } else if (c == '(' && inner.compare(i, 2, "(?") == 0 && inner.compare(i, 3, "(?:") != 0) {
            return "it looks around, or names a group";
        }
    }
    return "";
}
