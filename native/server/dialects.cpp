#include "dialects.h"

#include "json.h"
#include "model.h"
#include "request.h"

using json = common_json;

static bool ends_with(const std::string & path, const std::string & end) {
    return path.size() >= end.size() && path.compare(path.size() - end.size(), end.size(), end) == 0;
}

static json object_at(const json & node, const char * key) {
    const json found = node.is_object() ? node.value(key, json(nullptr)) : json(nullptr);
    return found.is_object() ? found : json::object();
}

// {"type": "json_schema", "schema": ...} as chat completions have it; an empty object for a text.
static json response_format(const json & format) {
    const json type = format.value("type", json("text"));
    if (type == "json_schema") {
        return json{ { "type", "json_schema" },
                     { "json_schema", json{ { "schema", format.value("schema", json(nullptr)) } } } };
    }
    return type == "json_object" ? json{ { "type", "json_object" } } : json::object();
}

// Items that a client puts together itself, or keeps of an answer: an assistant's without a type, reasoning that is encrypted.
static bool tidy_items(json & input) {
    json items      = json::array();
    bool is_changed = false;
    for (size_t i = 0; i < input.size(); ++i) {
        json item = input.at(i);
        if (item.is_object()) {
            const json content = item.value("content", json(nullptr));
            if (item.value("type", json(nullptr)) == "reasoning" && (!content.is_array() || content.empty())) {
                is_changed = true;
                continue;
            }
            if (item.value("role", json(nullptr)) == "assistant" && !item.contains("type")) {
                item["type"] = "message";
                is_changed   = true;
            }
        }
        items.push_back(item);
    }
    if (is_changed) {
        input = items;
    }
    return is_changed;
}

static bool tidy_responses(json & body) {
    bool       is_changed = false;
    const json format     = response_format(object_at(object_at(body, "text"), "format"));
    if (!format.empty()) {
        body["response_format"] = format;
        body.erase("text");
        is_changed = true;
    }
    if (body.contains("input") && body.at("input").is_array()) {
        is_changed |= tidy_items(body.at("input"));
    }
    return is_changed;
}

static void check_completion(const json & body) {
    if (body.value("echo", json(false)) == true) {
        throw pyskip_refuse_field("echo",
                                  "echo is true, which is not supported: put the prompt before the text yourself");
    }
    const json suffix = body.value("suffix", json(""));
    if (!suffix.is_null() && suffix != "") {
        throw pyskip_refuse_field("suffix",
                                  "suffix is not supported here: send input_prefix and input_suffix to /infill");
    }
    const json best = body.value("best_of", json(1));
    if (best.is_number() && best.get<double>() > 1.0 && best != body.value("n", json(1))) {
        throw pyskip_refuse_field("best_of",
                                  "best_of is " + best.dump_safe() + ", expected what n is: choose among n yourself");
    }
}

static void check_dimensions(const json & body) {
    const json    asked  = body.value("dimensions", json(nullptr));
    const int32_t n_embd = pyskip_server_model().n_embd();
    if (!asked.is_null() && n_embd > 0 && asked != n_embd) {
        throw pyskip_refuse_field("dimensions", "dimensions is " + asked.dump_safe().substr(0, 40) + ", expected " +
                                                    std::to_string(n_embd) +
                                                    ", which the model's vectors have: leave it out");
    }
}

bool pyskip_dialect(const std::string & path, json & body) {
    if (!body.is_object()) {
        return false;
    }
    if (ends_with(path, "/responses")) {
        return tidy_responses(body);
    }
    if (ends_with(path, "/v1/completions")) {
        check_completion(body);
    } else if (ends_with(path, "/embeddings")) {
        check_dimensions(body);
    }
    return false;
}

void pyskip_messages_carry(const json & body, json & converted) {
    json format = object_at(object_at(body, "output_config"), "format");
    format      = response_format(format.empty() ? object_at(body, "output_format") : format);
    if (!format.empty()) {
        converted["response_format"] = format;
    }
    const json choice = object_at(body, "tool_choice");
    if (choice.value("type", json(nullptr)) == "none") {
        converted["tool_choice"] = "none";
    }
    if (choice.value("disable_parallel_tool_use", json(false)) == true) {
        converted["parallel_tool_calls"] = false;
    }
}
