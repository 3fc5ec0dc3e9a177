#include "answer.h"

#include "json.h"
#include "server-task.h"
#include "turn.h"

#include <algorithm>

// Bytes of the character at `at`; 0: it is none; beyond the text: it may become one.
static size_t length_of(const std::string & text, size_t at) {
    const auto byte = [&](size_t i) { return (unsigned char) text[i]; };
    size_t     n    = 1;
    if (byte(at) >= 0x80) {
        n = byte(at) >= 0xC2 && byte(at) < 0xE0   ? 2
            : byte(at) >= 0xE0 && byte(at) < 0xF0 ? 3
            : byte(at) >= 0xF0 && byte(at) < 0xF5 ? 4
                                                  : 0;
    }
    for (size_t i = at + 1; i < at + n && i < text.size(); ++i) {
        if ((byte(i) & 0xC0) != 0x80) {
            return 0;
        }
    }
    const bool is_surrogate = n == 3 && at + 1 < text.size() && byte(at) == 0xED && byte(at + 1) >= 0xA0;
    return is_surrogate ? 0 : n;
}

void pyskip_answer_mend(std::string & text) {
    for (size_t at = 0; at < text.size();) {
        const size_t n = length_of(text, at);
        if (n == 0) {
            text.replace(at, 1, "\xEF\xBF\xBD");
        }
        at += n == 0 ? 3 : n;
    }
}

static size_t n_characters(const std::string & text) {
    return (size_t) std::count_if(text.begin(), text.end(), [](char c) { return ((unsigned char) c & 0xC0) != 0x80; });
}

static json array_of(const std::vector<int32_t> & layers) {
    json array = json::array();
    for (const int32_t il : layers) {
        array.push_back(il);
    }
    return array;
}

static json trace_of(const pyskip_told & told) {
    json trace = json::array();
    for (const pyskip_piece & piece : told.pieces) {
        trace.push_back(json{ { "text", piece.text },
                              { "skipped", array_of(piece.skips.ffn) },
                              { "attention_skipped", array_of(piece.skips.attention) } });
    }
    return trace;
}

static void add_skipping(json & figures, const pyskip_told & told) {
    figures["skip_rate"]           = told.skip_rate;
    figures["attention_skip_rate"] = told.attention_skip_rate;
    if (told.pace) {
        const pyskip_pace_stats & pace = *told.pace;
        figures["pace"]                = json{ { "target_tps", pace.target_tps },
                                               { "tps", pace.tps },
                                               { "rate", pace.rate },
                                               { "mean_rate", pace.mean_rate },
                                               { "floor", pace.floor },
                                               { "max_skip", pace.max_skip },
                                               { "held", pace.held },
                                               { "seconds", pace.seconds },
                                               { "is_short", pace.is_short } };
    }
}

// Only where upstream writes figures, never into what the model said.
static void add_figures(json & node, const pyskip_told & told, double tokens_per_second) {
    if (node.is_array()) {
        for (size_t i = 0; i < node.size(); ++i) {
            add_figures(node.at(i), told, tokens_per_second);
        }
        return;
    }
    if (!node.is_object()) {
        return;
    }
    if (told.is_last && node.contains("usage") && node.at("usage").is_object()) {
        add_skipping(node.at("usage"), told);
        node.at("usage")["tokens_per_second"] = tokens_per_second;
    }
    if (node.contains("timings") && node.at("timings").is_object()) {
        add_skipping(node.at("timings"), told);
    }
    for (const char * inner : { "data", "response" }) { // of an event
        if (node.contains(inner)) {
            add_figures(node.at(inner), told, tokens_per_second);
        }
    }
}

static void add_trace(json & answer, const pyskip_told & told) {
    const json trace = trace_of(told);
    if (answer.is_null() || (answer.is_array() && answer.empty())) {
        if (!told.pieces.empty()) { // tokens whose text is held back, or goes into nothing that is told
            answer = json::array();
            answer.push_back(
                json{ { "object", "chat.completion.chunk" }, { "choices", json::array() }, { "skip_trace", trace } });
        }
        return;
    }
    json & at = answer.is_array() ? answer.at((size_t) 0) : answer;
    if (!at.is_object() || (told.pieces.empty() && answer.is_array())) {
        return;
    }
    (at.contains("data") ? at.at("data") : at)["skip_trace"] = trace;
}

// Of completions of a text, as OpenAI has them: upstream writes what chat completions have. Offsets are the whole text's,
// so chunks have none.
static void add_logprobs(json & choice, bool is_whole) {
    json       logprobs = choice.value("logprobs", json(nullptr));
    const json content  = logprobs.is_object() ? logprobs.value("content", json(nullptr)) : json(nullptr);
    if (!content.is_array() ||
        (!content.empty() && !content.at((size_t) 0).contains("logprob"))) { // else after sampling
        return;
    }
    json   tokens = json::array(), chosen = json::array(), tops = json::array(), offsets = json::array();
    size_t offset = 0;
    for (size_t i = 0; i < content.size(); ++i) {
        const json & token = content.at(i);
        const json   best  = token.value("top_logprobs", json::array());
        json         top   = json::object();
        for (size_t k = 0; k < best.size(); ++k) {
            const std::string text = best.at(k).at("token").get<std::string>();
            if (!top.contains(text)) { // the likelier of two that read the same
                top[text] = best.at(k).at("logprob").get<double>();
            }
        }
        tokens.push_back(token.at("token"));
        chosen.push_back(token.at("logprob"));
        tops.push_back(top);
        offsets.push_back(offset);
        offset += n_characters(token.at("token").get<std::string>());
    }
    logprobs["tokens"]         = tokens;
    logprobs["token_logprobs"] = chosen;
    logprobs["top_logprobs"]   = tops;
    if (is_whole) {
        logprobs["text_offset"] = offsets;
    }
    choice["logprobs"] = logprobs;
}

static void add_all_logprobs(json & answer, bool is_whole) {
    for (size_t i = 0; answer.is_array() && i < answer.size(); ++i) {
        add_all_logprobs(answer.at(i), false);
    }
    if (!answer.is_object() || answer.value("object", json(nullptr)) != "text_completion") {
        return;
    }
    json & choices = answer.at("choices");
    for (size_t i = 0; i < choices.size(); ++i) {
        add_logprobs(choices.at(i), is_whole);
    }
}

void pyskip_answer_tell(json & answer, const server_task_result & result) {
    const auto * whole = dynamic_cast<const server_task_result_cmpl_final *>(&result);
    add_all_logprobs(answer, whole != nullptr);
    const auto & told = result.pyskip;
    if (!told) {
        return;
    }
    if (told->is_traced) {
        add_trace(answer, *told);
    }
    add_figures(answer, *told, whole ? whole->stats.n_gen_tps() : 0.0);
}
