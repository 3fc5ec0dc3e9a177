#include "tidy.h"

#include "json.h"
#include "request.h"

#include <string>
#include <vector>

using json = common_json;

static pyskip_refusal refused(const char * param, const std::string & message) {
    pyskip_refusal refusal;
    refusal.param   = param;
    refusal.message = message;
    return refusal;
}

// A field that is null is one that is not there. `kept` stays.
static bool drop_nulls(json & node, const char * kept = "") {
    std::vector<std::string> nulls;
    for (const auto & item : node.items()) {
        if (item.value().is_null() && item.key() != kept) {
            nulls.push_back(item.key());
        }
    }
    for (const std::string & key : nulls) {
        node.erase(key);
    }
    return !nulls.empty();
}

static bool tidy_messages(json & messages) {
    bool is_changed = false;
    for (size_t i = 0; messages.is_array() && i < messages.size(); ++i) {
        json & message = messages.at(i);
        if (!message.is_object()) {
            throw refused("messages", "a message is no object, expected one with a role and content");
        }
        is_changed |= drop_nulls(message, "content");
        if (message.value("role", json(nullptr)) == "assistant" && !message.contains("tool_calls") &&
            (!message.contains("content") || message.at("content").is_null())) {
            message["content"] = "";
            is_changed         = true;
        }
    }
    return is_changed;
}

static bool tidy_tools(json & tools) {
    bool is_changed = false;
    for (size_t i = 0; tools.is_array() && i < tools.size(); ++i) {
        json & tool = tools.at(i);
        if (!tool.is_object()) {
            throw refused("tools", "a tool is no object, expected {\"type\": \"function\", \"function\": {...}}");
        }
        is_changed |= drop_nulls(tool);
        if (tool.contains("function") && tool.at("function").is_object()) {
            is_changed |= drop_nulls(tool.at("function"));
        }
    }
    return is_changed;
}

// {"type": "function", "function": {"name": NAME}}: that tool alone, and it must be called.
static bool tidy_choice(json & body) {
    if (!body.contains("tool_choice") || !body.at("tool_choice").is_object() || !body.contains("messages")) {
        return false;
    }
    const json choice = body.at("tool_choice");
    if (!choice.contains("function") || !choice.at("function").is_object()) {
        return false; // another API's, which is converted
    }
    const json        name  = choice.at("function").value("name", json(nullptr));
    const std::string shown = name.is_string() ? name.get<std::string>() : "";
    const json        tools = body.value("tools", json::array());
    json              only  = json::array();
    for (size_t i = 0; tools.is_array() && i < tools.size(); ++i) {
        const json function = tools.at(i).value("function", json::object());
        if (name.is_string() && function.is_object() && function.value("name", json(nullptr)) == shown) {
            only.push_back(tools.at(i));
        }
    }
    if (only.empty()) {
        throw refused("tool_choice",
                      "tool_choice names '" + shown.substr(0, 60) + "', expected the name of one of the tools");
    }
    body["tools"]       = only;
    body["tool_choice"] = "required";
    return true;
}

static void check_input(const json & body) {
    if (!body.contains("input")) {
        return;
    }
    const json & input    = body.at("input");
    bool         is_empty = input.is_array() ? input.empty() : input == "";
    for (size_t i = 0; input.is_array() && i < input.size(); ++i) {
        is_empty |= input.at(i) == "";
    }
    if (is_empty) {
        throw refused("input", "found no text, expected at least one that is not empty");
    }
}

bool pyskip_tidy(json & body) {
    bool is_changed = drop_nulls(body);
    if (body.contains("messages")) {
        is_changed |= tidy_messages(body.at("messages"));
    }
    if (body.contains("tools")) {
        is_changed |= tidy_tools(body.at("tools"));
    }
    is_changed |= tidy_choice(body);
    check_input(body);
    return is_changed;
}
