#include "spec.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

namespace {

constexpr double MAX_ERROR = 1e30;

using settings = std::map<std::string, std::string>;

[[noreturn]] void fail(const std::string & line) {
    throw pyskip_bad_spec(line);
}

// For an error message, cut short.
std::string shown(const std::string & text) {
    std::string out = "'";
    for (const char c : text.substr(0, 56)) {
        out += (unsigned char) c < 32 || (unsigned char) c > 126 ? '?' : c;
    }
    return out + (text.size() > 56 ? "...'" : "'");
}

std::string stripped(const std::string & text) {
    const auto first = text.find_first_not_of(" \t\r\n");
    return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

bool read_double(const std::string & text, double & value) {
    if (text.empty() || text.find_first_not_of("+-.0123456789eE") != std::string::npos) {
        return false; // neither hexadecimal nor nan
    }
    char * end = nullptr;
    value      = std::strtod(text.c_str(), &end);
    return *end == '\0' && std::isfinite(value);
}

double number(const std::string & what, const std::string & text, double low, double high) {
    double value = 0.0;
    if (!read_double(text, value) || value < low || value > high) {
        const std::string range =
            high == INFINITY ? "a finite number" : "a number from " + pyskip_number(low) + " to " + pyskip_number(high);
        fail(what + " is " + shown(text) + ", expected " + range);
    }
    return value;
}

int32_t count(const std::string & what, const std::string & text) {
    const bool is_digits =
        !text.empty() && text.size() <= 10 && text.find_first_not_of("0123456789") == std::string::npos;
    const long long value = is_digits ? std::atoll(text.c_str()) : -1;
    if (value < 0 || value > INT32_MAX) {
        fail(what + " is " + shown(text) + ", expected a whole number from 0 to 2147483647");
    }
    return (int32_t) value;
}

bool flag(const std::string & what, const std::string & text) {
    if (text != "0" && text != "1") {
        fail(what + " is " + shown(text) + ", expected 0 or 1");
    }
    return text == "1";
}

std::vector<std::string> split(const std::string & text, char separator) {
    std::vector<std::string> items;
    for (size_t at = 0; !text.empty() && at <= text.size();) {
        const size_t end = std::min(text.find(separator, at), text.size());
        items.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return items;
}

settings read_settings(const std::string & kind, const std::string & rest, const std::vector<std::string> & known) {
    settings values;
    for (const std::string & item : split(rest, ',')) {
        const size_t      equals = item.find('=');
        const std::string key    = item.substr(0, equals);
        if (equals == std::string::npos || std::find(known.begin(), known.end(), key) == known.end()) {
            std::string keys;
            for (const std::string & name : known) {
                keys += (keys.empty() ? "" : ", ") + name;
            }
            fail(kind + " has no setting " + shown(item) + ", expected key=value with a key of " + keys);
        }
        if (!values.emplace(key, item.substr(equals + 1)).second) {
            fail(kind + " sets " + key + " twice, expected it once");
        }
    }
    return values;
}

// Calls `read` with what is set.
template <typename F> void if_set(const settings & values, const std::string & kind, const char * key, F read) {
    const auto it = values.find(key);
    if (it != values.end()) {
        read(kind + " " + key, it->second);
    }
}

void read_maybe(const settings & values, const std::string & kind, const char * key, double high, pyskip_maybe & into) {
    if_set(values, kind, key,
           [&](const std::string & what, const std::string & text) { into = { true, number(what, text, 0.0, high) }; });
}

void read_warmup(const settings & values, const std::string & kind, pyskip_maybe & into) {
    if_set(values, kind, "warmup",
           [&](const std::string & what, const std::string & text) { into = { true, (double) count(what, text) }; });
}

pyskip_spec parse_cosine(const std::string & rest) {
    const auto  values = read_settings("cosine", rest, { "cold_end", "cold_start", "run", "threshold", "warmup" });
    pyskip_spec spec;
    spec.type   = PYSKIP_POLICY_COSINE;
    spec.warmup = { true, 16 };
    read_warmup(values, "cosine", spec.warmup);
    if_set(values, "cosine", "threshold", [&](const std::string & what, const std::string & text) {
        spec.threshold = number(what, text, -INFINITY, INFINITY);
    });
    const auto counted = [&](const char * key, int32_t & into) {
        if_set(values, "cosine", key,
               [&](const std::string & what, const std::string & text) { into = count(what, text); });
    };
    counted("run", spec.run);
    counted("cold_start", spec.cold_start);
    counted("cold_end", spec.cold_end);
    return spec;
}

void make_set(std::vector<int32_t> & layers) {
    std::sort(layers.begin(), layers.end());
    layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
}

pyskip_spec parse_static(const std::string & rest) {
    settings    values;
    pyskip_spec spec;
    spec.type = PYSKIP_POLICY_STATIC;
    for (const std::string & spaced : split(stripped(rest), ',')) {
        const std::string item   = stripped(spaced);
        const size_t      equals = item.find('=');
        if (equals == std::string::npos) {
            spec.layers.push_back(count("static layer", item));
            continue;
        }
        const std::string key = item.substr(0, equals);
        if ((key != "attn" && key != "n" && key != "by" && key != "stand_in") ||
            !values.emplace(key, stripped(item.substr(equals + 1))).second) {
            fail("static has " + shown(item) +
                 ", expected layers, and attn=LAYER+..., n=N, by=NAME and stand_in=0 or 1, each once");
        }
    }
    if_set(values, "static", "attn", [&](const std::string & what, const std::string & text) {
        const std::vector<std::string> named = split(text, '+');
        for (const std::string & il : named.empty() ? std::vector<std::string>{ "" } : named) {
            spec.attention.push_back(count(what, stripped(il)));
        }
    });
    if_set(values, "static", "n", [&](const std::string & what, const std::string & text) {
        spec.n = count(what, text);
        if (spec.n == 0) {
            fail("static n is 0, expected a whole number from 1: off skips nothing");
        }
        if (!spec.layers.empty() || !spec.attention.empty()) {
            fail("static has n beside layers, expected one of them: layers are named, or chosen");
        }
    });
    if_set(values, "static", "by", [&](const std::string & what, const std::string & text) {
        if (text != "loss" && text != "cosine" && text != "norm") {
            fail(what + " is " + shown(text) + ", expected loss, cosine or norm");
        }
        if (spec.n == 0) {
            fail("static has by=" + text + ", expected n=N with it: layers are named, or chosen");
        }
        spec.by = text;
    });
    if_set(values, "static", "stand_in", [&](const std::string & what, const std::string & text) {
        spec.stand_in        = flag(what, text);
        spec.is_stand_in_set = true;
    });
    if (spec.n == 0 && spec.layers.empty() && spec.attention.empty()) {
        fail("static names no layer, expected at least one, as in static:5,14,25 or static:attn=12+13, or static:n=4");
    }
    make_set(spec.layers);
    make_set(spec.attention);
    return spec;
}

pyskip_spec parse_adaskip(const std::string & rest) {
    const auto  values = read_settings("adaskip", rest, { "n" });
    pyskip_spec spec;
    spec.type = PYSKIP_POLICY_ADASKIP;
    if_set(values, "adaskip", "n",
           [&](const std::string & what, const std::string & text) { spec.n_sublayers = count(what, text); });
    if (spec.n_sublayers < 1) {
        fail("adaskip n is 0, expected 1 or more: off skips none");
    }
    return spec;
}

pyskip_spec parse_prompt(const std::string & rest) {
    const auto  values = read_settings("prompt", rest, { "rate" });
    pyskip_spec spec;
    spec.type = PYSKIP_POLICY_PROMPT;
    spec.rate = { true, 0.25 };
    read_maybe(values, "prompt", "rate", 1.0, spec.rate);
    return spec;
}

pyskip_spec parse_profile(const std::string & rest) {
    const auto values =
        read_settings("profile", rest, { "attn", "error", "hold", "prefill", "prompt", "rate", "warmup" });
    pyskip_spec spec;
    spec.type = PYSKIP_POLICY_PROFILE;
    read_maybe(values, "profile", "rate", 1.0, spec.rate);
    read_maybe(values, "profile", "error", MAX_ERROR, spec.error);
    read_maybe(values, "profile", "prompt", 1.0, spec.prompt);
    read_maybe(values, "profile", "attn", 1.0, spec.attn);
    read_warmup(values, "profile", spec.warmup);
    if_set(values, "profile", "hold",
           [&](const std::string & what, const std::string & text) { spec.hold = flag(what, text); });
    if_set(values, "profile", "prefill",
           [&](const std::string & what, const std::string & text) { spec.prefill = flag(what, text); });
    if (spec.rate.is_set && spec.error.is_set) {
        fail("profile has both rate and error, expected one of them");
    }
    if (spec.prompt.is_set && spec.prefill) {
        fail("profile has both prompt and prefill, expected one of them");
    }
    spec.hold = spec.hold && !spec.error.is_set;
    return spec;
}

pyskip_spec parse_random(const std::string & rest) {
    const auto  values = read_settings("random", rest, { "attn", "error", "rate", "seed", "stand_in", "warmup" });
    pyskip_spec spec;
    spec.type   = PYSKIP_POLICY_RANDOM;
    spec.rate   = { true, 0.25 };
    spec.warmup = { true, 16 };
    read_maybe(values, "random", "rate", 1.0, spec.rate);
    read_maybe(values, "random", "error", MAX_ERROR, spec.error);
    read_maybe(values, "random", "attn", 1.0, spec.attn);
    read_warmup(values, "random", spec.warmup);
    if_set(values, "random", "seed",
           [&](const std::string & what, const std::string & text) { spec.seed = (uint32_t) count(what, text); });
    if_set(values, "random", "stand_in",
           [&](const std::string & what, const std::string & text) { spec.stand_in = flag(what, text); });
    if (spec.error.is_set && !spec.stand_in) {
        fail("random has error, expected stand_in=1 with it: without stand-ins there is no error");
    }
    return spec;
}

} // namespace

std::string pyskip_number(double value) {
    char text[40];
    for (int precision = 1; precision <= 17; ++precision) {
        std::snprintf(text, sizeof(text), "%.*g", precision, value);
        if (std::strtod(text, nullptr) == value) {
            break;
        }
    }
    const std::string out = text;
    return out.find_first_of(".en") == std::string::npos ? out + ".0" : out;
}

bool pyskip_spec::needs_profile() const {
    return type == PYSKIP_POLICY_PROFILE || type == PYSKIP_POLICY_PROMPT ||
           (type == PYSKIP_POLICY_RANDOM && stand_in) || (type == PYSKIP_POLICY_STATIC && (n > 0 || has_stand_ins()));
}

bool pyskip_spec::decides_prompt() const {
    return type == PYSKIP_POLICY_STATIC || (type == PYSKIP_POLICY_PROFILE && (prefill || prompt.value > 0.0));
}

bool pyskip_spec::measures_prompt() const {
    return type == PYSKIP_POLICY_ADASKIP || type == PYSKIP_POLICY_PROMPT;
}

static std::string joined(const std::vector<int32_t> & layers, const char * separator) {
    std::string text;
    for (const int32_t il : layers) {
        text += (text.empty() ? "" : separator) + std::to_string(il);
    }
    return text;
}

std::string pyskip_spec::str() const {
    std::string text;
    const auto  add = [&](const char * key, const std::string & value) {
        text += (text.empty() ? "" : ",") + (key + ("=" + value));
    };
    const auto add_maybe = [&](const char * key, const pyskip_maybe & value) {
        if (value.is_set) {
            add(key, pyskip_number(value.value));
        }
    };
    const auto add_count = [&](const char * key, int64_t value) { add(key, std::to_string(value)); };
    switch (type) {
        case PYSKIP_POLICY_COSINE:
            add("threshold", pyskip_number(threshold));
            add_count("run", run);
            add_count("cold_start", cold_start);
            add_count("cold_end", cold_end);
            add_count("warmup", (int64_t) warmup.value);
            return "cosine:" + text;
        case PYSKIP_POLICY_STATIC:
            text = n > 0 ? "n=" + std::to_string(n) : joined(layers, ",");
            if (!attention.empty()) {
                add("attn", joined(attention, "+"));
            }
            if (!by.empty()) {
                add("by", by);
            }
            if (is_stand_in_set) {
                add("stand_in", stand_in ? "1" : "0");
            }
            return "static:" + text;
        case PYSKIP_POLICY_ADASKIP: return "adaskip:n=" + std::to_string(n_sublayers);
        case PYSKIP_POLICY_PROMPT: return "prompt:rate=" + pyskip_number(rate.value);
        case PYSKIP_POLICY_PROFILE:
            if (rate.is_set && hold && !prefill && !prompt.is_set && !attn.is_set && !warmup.is_set) {
                return pyskip_number(rate.value);
            }
            add_maybe("rate", rate);
            add_maybe("error", error);
            add_maybe("attn", attn);
            if (!hold && !error.is_set) {
                add("hold", "0");
            }
            add_maybe("prompt", prompt);
            if (prefill) {
                add("prefill", "1");
            }
            if (warmup.is_set) {
                add_count("warmup", (int64_t) warmup.value);
            }
            return text.empty() ? "profile" : "profile:" + text;
        case PYSKIP_POLICY_RANDOM:
            add_maybe("rate", rate);
            add_count("seed", seed);
            add_count("warmup", (int64_t) warmup.value);
            add("stand_in", stand_in ? "1" : "0");
            add_maybe("error", error);
            add_maybe("attn", attn);
            return "random:" + text;
        default: return "off";
    }
}

pyskip_spec pyskip_spec::at_rate(double value) const {
    pyskip_spec spec = *this;
    spec.rate        = { true, value };
    spec.hold        = false;
    return spec;
}

pyskip_spec pyskip_spec::paced() const {
    if (type != PYSKIP_POLICY_OFF && (type != PYSKIP_POLICY_PROFILE || !rate.is_set)) {
        fail("skip is " + shown(str()) + ", expected off or a rate to keep a pace from, such as 0.1");
    }
    pyskip_spec spec = at_rate(rate.value); // 0 of off
    spec.type        = PYSKIP_POLICY_PROFILE;
    return spec;
}

pyskip_spec pyskip_spec::with_prompt(double share) const {
    if (!(share >= 0.0 && share <= 1.0)) {
        fail("skip_prompt is " + pyskip_number(share) + ", expected a number from 0 to 1");
    }
    pyskip_spec spec = *this;
    if (type == PYSKIP_POLICY_OFF) {
        spec.type = PYSKIP_POLICY_PROFILE;
        spec.rate = { true, 0.0 };
    } else if (type != PYSKIP_POLICY_PROFILE) {
        fail("a skip rate for prompts goes with a profile's policy, and skip is " + shown(str()) +
             ": leave one of them out");
    }
    spec.prompt  = { true, share };
    spec.prefill = false;
    return spec;
}

pyskip_spec pyskip_spec_of_rate(double rate) {
    if (!(rate >= 0.0 && rate <= 1.0)) {
        fail("skip is " + pyskip_number(rate) + ", expected a rate from 0 to 1 or a specification such as 'off'");
    }
    pyskip_spec spec;
    spec.type = PYSKIP_POLICY_PROFILE;
    spec.rate = { true, rate };
    return spec;
}

pyskip_spec pyskip_spec_parse(const std::string & given) {
    const std::string text  = stripped(given);
    const size_t      colon = text.find(':');
    const std::string kind  = text.substr(0, colon);
    const std::string rest  = colon == std::string::npos ? "" : text.substr(colon + 1);
    if (text == "off") {
        return {};
    }
    if (kind == "cosine") {
        return parse_cosine(rest);
    }
    if (kind == "static") {
        return parse_static(rest);
    }
    if (kind == "profile") {
        return parse_profile(rest);
    }
    if (kind == "random") {
        return parse_random(rest);
    }
    if (kind == "adaskip") {
        return parse_adaskip(rest);
    }
    if (kind == "prompt") {
        return parse_prompt(rest);
    }
    double rate = 0.0;
    if (read_double(text, rate) && rate >= 0.0 && rate <= 1.0) {
        return pyskip_spec_of_rate(rate);
    }
    fail("skip is " + shown(text) +
         ", expected off, a rate such as 0.25, profile[:key=value,...], cosine[:key=value,...], "
         "static:LAYER,...,attn=LAYER+..., adaskip[:n=N], prompt[:rate=R] or random[:key=value,...]");
}
