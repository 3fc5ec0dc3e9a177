#include "tidy.h"

#include "json.h"
#include "request.h"

#include <string>
#include <vector>

using json = common_json;

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

// Clients write no arguments as an empty text, or as none.
static bool tidy_calls(json & calls) {
    bool is_changed = false;
    for (size_t i = 0; calls.is_array() && i < calls.size(); ++i) {
        json & call = calls.at(i);
        if (!call.is_object()) {
            continue; // upstream's to refuse
        }
        is_changed |= drop_nulls(call);
        if (!call.contains("function") || !call.at("function").is_object()) {
            continue;
        }
        json & function = call.at("function");
        is_changed |= drop_nulls(function);
        if (function.value("arguments", json("")) == "") {
            function["arguments"] = "{}";
            is_changed            = true;
        }
    }
    return is_changed;
}

static bool tidy_messages(json & messages) {
    if (!messages.is_array() || messages.empty()) {
        throw pyskip_refuse_field("messages", "messages is " + std::string(messages.is_array() ? "empty" : "no array") +
                                                  ", expected at least one with a role and content");
    }
    bool is_changed = false;
    for (size_t i = 0; i < messages.size(); ++i) {
        json & message = messages.at(i);
        if (!message.is_object()) {
            throw pyskip_refuse_field("messages", "a message is no object, expected one with a role and content");
        }
        is_changed |= drop_nulls(message, "content");
        if (message.contains("tool_calls")) {
            is_changed |= tidy_calls(message.at("tool_calls"));
        }
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
            throw pyskip_refuse_field("tools",
                                      "a tool is no object, expected {\"type\": \"function\", \"function\": {...}}");
        }
        is_changed |= drop_nulls(tool);
        if (tool.contains("function") && tool.at("function").is_object()) {
            is_changed |= drop_nulls(tool.at("function"));
        }
    }
    return is_changed;
}

// Where a tool, or a choice of one, has its name: chat completions have it one level further in.
static json name_in(const json & node) {
    const json inner = node.value("function", json(nullptr));
    return (inner.is_object() ? inner : node).value("name", json(nullptr));
}

// {"type": "function", "function": {"name": NAME}}, {"type": "function", "name": NAME} of responses, {"type": "tool", "name":
// NAME} of Anthropic's: that tool alone, and it must be called.
static bool tidy_choice(json & body) {
    if (!body.contains("tool_choice") || !body.at("tool_choice").is_object()) {
        return false;
    }
    json       choice    = body.at("tool_choice");
    const bool is_theirs = choice.value("type", json(nullptr)) == "tool";
    if (!is_theirs && choice.value("type", json(nullptr)) != "function") {
        return false;
    }
    const json        name  = name_in(choice);
    const std::string shown = name.is_string() ? name.get<std::string>() : "";
    const json        tools = body.value("tools", json::array());
    json              only  = json::array();
    for (size_t i = 0; tools.is_array() && i < tools.size(); ++i) {
        if (name.is_string() && name_in(tools.at(i)) == shown) {
            only.push_back(tools.at(i));
        }
    }
    if (only.empty()) {
        throw pyskip_refuse_field("tool_choice", "tool_choice names '" + shown.substr(0, 60) +
                                                     "', expected the name of one of the tools");
    }
    body["tools"] = only;
    if (is_theirs) {
        choice["type"] = "any";
        choice.erase("name");
        body["tool_choice"] = choice;
    } else {
        body["tool_choice"] = "required";
    }
    return true;
}

// An empty one would end every text before it began.
static bool tidy_stops(json & body, const char * name) {
    if (!body.contains(name)) {
        return false;
    }
    const json stops = body.at(name);
    if (stops == "") {
        body.erase(name);
        return true;
    }
    json left = json::array();
    for (size_t i = 0; stops.is_array() && i < stops.size(); ++i) {
        if (stops.at(i) != "" && !stops.at(i).is_null()) {
            left.push_back(stops.at(i));
        }
    }
    if (!stops.is_array() || left.size() == stops.size()) {
        return false;
    }
    body[name] = left;
    return true;
}

// Some put the schema beside the type.
static bool tidy_format(json & body) {
    if (!body.contains("response_format")) {
        return false;
    }
    json & format = body.at("response_format");
    if (!format.is_object()) {
        throw pyskip_refuse_field("response_format",
                                  "response_format is " + format.dump_safe().substr(0, 40) +
                                      R"(, expected {"type": "json_schema", "json_schema": {"schema": ...}})");
    }
    bool is_changed = drop_nulls(format);
    if (format.value("type", json(nullptr)) != "json_schema") {
        return is_changed;
    }
    if (!format.contains("json_schema") && format.contains("schema")) {
        format["json_schema"] = json{ { "schema", format.at("schema") } };
        format.erase("schema");
        is_changed = true;
    }
    const json inner = format.value("json_schema", json(nullptr));
    if (!inner.is_object() || inner.value("schema", json(nullptr)).is_null()) {
        throw pyskip_refuse_field("response_format",
                                  R"(response_format has no schema, expected {"type": "json_schema", )"
                                  R"("json_schema": {"schema": ...}})");
    }
    return is_changed;
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
        throw pyskip_refuse_field("input", "found no text, expected at least one that is not empty");
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
    is_changed |= tidy_format(body);
    for (const char * name : { "stop", "stop_sequences" }) {
        is_changed |= tidy_stops(body, name);
    }
    check_input(body);
    return is_changed;
}
