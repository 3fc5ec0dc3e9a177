#include "bounds.h"

#include "json.h"
#include "model.h"
#include "places.h"
#include "request.h"

#include <algorithm>
#include <string>

using json = common_json;

static constexpr size_t MAX_GRAMMAR = 65536; // bytes
static constexpr int    MAX_GROUPS  = 64;    // of a grammar, one within the other: its parser recurses
static constexpr size_t MAX_TEXTS   = 2048;  // of an array of texts or messages: OpenAI's own bound
static constexpr size_t MAX_STOPS   = 256;   // each is looked for after each token
static constexpr int    FIRST_REGEX = 2;     // of upstream's types of grammar triggers

static size_t length(const json & body, const char * name) {
    return body.contains(name) && body.at(name).is_array() ? body.at(name).size() : 0;
}

// How deep the groups of a grammar go; what stands in texts, classes and comments is none.
static int depth(const std::string & grammar) {
    int  now   = 0;
    int  most  = 0;
    char until = '\0'; // what ends a text, a class or a comment
    for (size_t i = 0; i < grammar.size(); ++i) {
        const char c = grammar[i];
        if (until != '\0') {
            i += c == '\\' && until != '\n';
            until = c == until ? '\0' : until;
        } else if (c == '"' || c == '[' || c == '#') {
            until = c == '"' ? '"' : c == '[' ? ']' : '\n';
        } else if (c == '(') {
            most = std::max(most, ++now);
        } else if (c == ')') {
            --now;
        }
    }
    return most;
}

static void check_grammar(const json & body) {
    if (body.contains("grammar") && body.at("grammar").is_string()) {
        const std::string grammar = body.at("grammar").get<std::string>();
        if (grammar.size() > MAX_GRAMMAR) {
            throw pyskip_refuse_field("grammar", "the grammar has " + std::to_string(grammar.size()) +
                                                     " bytes, expected up to " + std::to_string(MAX_GRAMMAR));
        }
        if (depth(grammar) > MAX_GROUPS) {
            throw pyskip_refuse_field("grammar", "the grammar has groups in more than " + std::to_string(MAX_GROUPS) +
                                                     " others: give the inner ones rules of their own");
        }
    }
    const json triggers = body.value("grammar_triggers", json::array());
    for (size_t i = 0; triggers.is_array() && i < triggers.size(); ++i) {
        const json type = triggers.at(i).is_object() ? triggers.at(i).value("type", json(0)) : json(0);
        if (type.is_number() && type.get<double>() >= FIRST_REGEX) {
            throw pyskip_refuse_field("grammar_triggers",
                                      "a trigger of the grammar is a regular expression, expected a word or a token");
        }
    }
}

// A prompt is one text, or an array of tokens, or of texts and tokens; several are an array of those.
static size_t n_prompts(const json & body) {
    const size_t n = length(body, "prompt");
    for (size_t i = 0; i < n; ++i) {
        if (body.at("prompt").at(i).is_number()) {
            return 1;
        }
    }
    return std::max<size_t>(n, 1);
}

static void check_tokens(const json & body) {
    const json    tokens  = body.value("tokens", json::array());
    const int32_t n_vocab = pyskip_server_model().n_vocab();
    for (size_t i = 0; tokens.is_array() && i < tokens.size(); ++i) {
        const double token = tokens.at(i).is_number_integer() ? tokens.at(i).get<double>() : -1.0;
        if (!(token >= 0.0 && token < n_vocab)) {
            throw pyskip_refuse_field("tokens", "tokens holds " + tokens.at(i).dump_safe().substr(0, 40) +
                                                    ", expected numbers from 0 to " + std::to_string(n_vocab - 1));
        }
    }
}

int32_t pyskip_bounds_places(const json & body) {
    return body.is_object() ? (int32_t) n_prompts(body) : 1;
}

void pyskip_bounds_check(const std::string & path, const json & body) {
    if (!body.is_object()) {
        return;
    }
    const std::string detokenize = "/detokenize";
    const bool        is_tokens  = path.size() >= detokenize.size() &&
                                   path.compare(path.size() - detokenize.size(), detokenize.size(), detokenize) == 0;
    if (is_tokens && pyskip_server_model().n_vocab() > 0) {
        check_tokens(body);
    }
    check_grammar(body);
    for (const char * name : { "input", "content", "documents", "texts", "messages" }) {
        const size_t n = length(body, name);
        if (n > MAX_TEXTS && !body.at(name).at(0).is_number()) {
            throw pyskip_refuse_field(name, std::string(name) + " holds " + std::to_string(n) + ", expected up to " +
                                                std::to_string(MAX_TEXTS) + ": send several requests");
        }
    }
    if (length(body, "stop") > MAX_STOPS) {
        throw pyskip_refuse_field("stop", "stop holds " + std::to_string(length(body, "stop")) +
                                              " texts, expected up to " + std::to_string(MAX_STOPS));
    }
    const int32_t most = pyskip_server_places().n_all();
    if (most > 0 && n_prompts(body) > (size_t) most) {
        throw pyskip_refuse_field("prompt", "prompt holds " + std::to_string(n_prompts(body)) +
                                                " prompts, expected up to " + std::to_string(most) +
                                                ", as many as may run and wait: send several requests");
    }
}
