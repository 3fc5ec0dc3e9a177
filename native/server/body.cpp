#include "body.h"

#include "bounds.h"
#include "dialects.h"
#include "json.h"
#include "model.h"
#include "schemas.h"
#include "settings.h"
#include "tidy.h"

#include <algorithm>
#include <initializer_list>

using json = common_json;

static constexpr int MAX_DEPTH = 128; // of nesting

namespace {

bool ends_with_any(const std::string & path, std::initializer_list<const char *> ends) {
    return std::any_of(ends.begin(), ends.end(), [&](const std::string & end) {
        return path.size() >= end.size() && path.compare(path.size() - end.size(), end.size(), end) == 0;
    });
}

bool generates(const std::string & path) {
    return ends_with_any(path, { "/completion", "/completions", "/responses", "/messages", "/infill" });
}

// Parsers and copies recurse: what is nested deeper than they have stack for must not reach them.
bool is_shallow(const std::string & text) {
    int  depth   = 0;
    bool in_text = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_text) {
            i += c == '\\';
            in_text = c != '"';
        } else if (c == '"') {
            in_text = true;
        } else if (c == '[' || c == '{') {
            if (++depth > MAX_DEPTH) {
                return false;
            }
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return true;
}

json parsed(const std::string & text) {
    if (!is_shallow(text)) {
        throw pyskip_refuse(400, "the body is nested deeper than " + std::to_string(MAX_DEPTH) + ": flatten it", "");
    }
    try {
        return json::parse(text);
    } catch (const std::exception & e) {
        throw pyskip_refuse(400, std::string("the body is not valid JSON (") + e.what() + "), expected a JSON object",
                            "");
    }
}

void check_model(const json & body) {
    const std::string & name = pyskip_server_model().name(); // none in front of several: the router knows them
    if (!pyskip_server_settings().only_named || name.empty() || !body.contains("model") ||
        !body.at("model").is_string() || body.at("model").get<std::string>() == name) {
        return;
    }
    pyskip_refusal refusal = pyskip_refuse(
        404, "the model '" + body.at("model").get<std::string>().substr(0, 60) + "' does not exist, expected " + name,
        "model_not_found");
    refusal.param = "model";
    throw refusal;
}

// Upstream would let the model answer as it likes.
void check_tools(const json & body) {
    if (pyskip_server_model().has_tools() || body.value("tool_choice", json("auto")) != "required") {
        return;
    }
    pyskip_refusal refusal =
        pyskip_refuse(400,
                      "the model's chat template knows no tools, so no call can be required: ask for a "
                      "response_format, or give the server a --chat-template that does",
                      "tools_not_supported");
    refusal.param = "tool_choice";
    throw refusal;
}

} // namespace

bool pyskip_body_computes(const std::string & path) {
    return generates(path) ||
           ends_with_any(path, { "/embedding", "/embeddings", "/rerank", "/reranking", "/transcriptions" });
}

int32_t pyskip_body_check(const std::string & path, std::string & text) {
    if (text.empty() && !pyskip_body_computes(path)) {
        return 0; // an action that is all in its address
    }
    json body = parsed(text);
    pyskip_bounds_check(path, body);
    if (!pyskip_body_computes(path)) {
        if (body.is_object() && pyskip_tidy(body)) { // Anthropic's count of tokens, templates
            text = body.dump_safe();
        }
        return 0;
    }
    if (!body.is_object()) {
        throw pyskip_refuse(400, "the body is no JSON object, expected one", "");
    }
    bool is_changed = pyskip_tidy(body);
    is_changed |= pyskip_dialect(path, body);
    if (generates(path)) {
        is_changed |= pyskip_schemas_prepare(body);
    }
    const bool          is_router = pyskip_server_model().name().empty();
    const std::string & standard  = pyskip_server_settings().default_model;
    if (is_router && !body.contains("model") && !standard.empty()) {
        body["model"] = standard;
        is_changed    = true;
    }
    check_model(body);
    check_tools(body);
    if (generates(path) && !is_router) { // else the model's own process does
        pyskip_request_read(body);
    }
    if (is_changed) {
        text = body.dump_safe();
    }
    return pyskip_bounds_places(body);
}
