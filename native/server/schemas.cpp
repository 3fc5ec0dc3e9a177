#include "schemas.h"

#include "json.h"

using json = common_json;

// The schema, and those within it; not what only looks like one: a value, or a property's name.
static bool walk(json & schema, const std::string & param, const pyskip_see_schema & see) {
    if (!schema.is_object()) {
        return false;
    }
    bool is_changed = see(schema, param);
    for (const char * named : { "properties", "$defs", "definitions" }) {
        if (schema.contains(named) && schema.at(named).is_object()) {
            for (const auto & item : schema.at(named).items()) {
                is_changed |= walk(item.value(), param, see);
            }
        }
    }
    for (const char * key : { "items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf", "not" }) {
        if (!schema.contains(key)) {
            continue;
        }
        json & inner = schema.at(key);
        if (!inner.is_array()) {
            is_changed |= walk(inner, param, see);
            continue;
        }
        for (size_t i = 0; i < inner.size(); ++i) {
            is_changed |= walk(inner.at(i), param, see);
        }
    }
    return is_changed;
}

// The node that these keys lead to, nullptr if they do not.
static json * at(json & node, std::initializer_list<const char *> keys) {
    json * found = &node;
    for (const char * key : keys) {
        if (!found->is_object() || !found->contains(key)) {
            return nullptr;
        }
        found = &found->at(key);
    }
    return found;
}

bool pyskip_schemas(json & body, const pyskip_see_schema & see) {
    bool       is_changed = false;
    const auto walk_at    = [&](json & node, std::initializer_list<const char *> keys, const char * param) {
        if (json * schema = at(node, keys)) {
            is_changed |= walk(*schema, param, see);
        }
    };
    walk_at(body, { "json_schema" }, "json_schema");
    walk_at(body, { "response_format", "schema" }, "response_format");
    walk_at(body, { "response_format", "json_schema", "schema" }, "response_format");
    walk_at(body, { "text", "format", "schema" }, "text");
    walk_at(body, { "output_config", "format", "schema" }, "output_config");
    if (json * tools = at(body, { "tools" }); tools && tools->is_array()) {
        for (size_t i = 0; i < tools->size(); ++i) {
            walk_at(tools->at(i), { "function", "parameters" }, "tools");
            walk_at(tools->at(i), { "parameters" }, "tools");
            walk_at(tools->at(i), { "input_schema" }, "tools");
        }
    }
    return is_changed;
}
