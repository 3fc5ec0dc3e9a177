#include "answer.h"

#include "json.h"
#include "server-task.h"
#include "turn.h"

#include <string>

static json trace_of(const pyskip_told & told) {
    json trace = json::array();
    for (const pyskip_piece & piece : told.pieces) {
        json layers = json::array();
        for (const int32_t il : piece.skipped) {
            layers.push_back(il);
        }
        trace.push_back(json{ { "text", piece.text }, { "skipped", layers } });
    }
    return trace;
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
        node.at("usage")["skip_rate"]         = told.skip_rate;
        node.at("usage")["tokens_per_second"] = tokens_per_second;
    }
    if (node.contains("timings") && node.at("timings").is_object()) {
        node.at("timings")["skip_rate"] = told.skip_rate;
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

void pyskip_answer_tell(json & answer, const server_task_result & result) {
    const auto & told = result.pyskip;
    if (!told) {
        return;
    }
    const auto * last = dynamic_cast<const server_task_result_cmpl_final *>(&result);
    if (told->is_traced) {
        add_trace(answer, *told);
    }
    add_figures(answer, *told, last ? last->stats.n_gen_tps() : 0.0);
}
