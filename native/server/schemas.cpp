#include "schemas.h"

#include "json.h"
#include "request.h"
#include "schema-check.h"

#include <initializer_list>
#include <string>

using json = common_json;

static constexpr size_t MAX_NAME = 256; // bytes of a tool's name: the same bound, for the same reason, as in schemas

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

static bool prepare(json & schema, const char * param, bool must_hold) {
    if (schema == true) { // of JSON schemas: anything
        schema = json::object();
        return true;
    }
    if (!schema.is_object() && must_hold && !schema.is_null()) {
        throw pyskip_refuse_field(param, "the schema is " + schema.dump_safe().substr(0, 40) + ", expected an object");
    }
    if (!schema.is_object()) {
        return false; // upstream's to refuse
    }
    try {
        return pyskip_schema_prepare(schema, must_hold);
    } catch (const pyskip_bad_schema & e) {
        throw pyskip_refuse_field(param, e.what());
    }
}

// A tool's schema tells the model what to write; it is a promise to the client if it says so.
static bool prepare_tool(json & tool) {
    bool is_changed = false;
    for (json * function : { at(tool, { "function" }), at(tool, {}) }) {
        if (!function || !function->is_object()) {
            continue;
        }
        const json name = function->value("name", json(nullptr));
        if (name.is_string() && name.get<std::string>().size() > MAX_NAME) {
            throw pyskip_refuse_field("tools", "a tool's name has " + std::to_string(name.get<std::string>().size()) +
                                                   " bytes, expected up to " + std::to_string(MAX_NAME));
        }
        const bool must_hold = function->value("strict", json(false)) == true;
        for (const char * key : { "parameters", "input_schema" }) {
            if (json * schema = at(*function, { key })) {
                is_changed |= prepare(*schema, "tools", must_hold);
            }
        }
    }
    return is_changed;
}

bool pyskip_schemas_prepare(json & body) {
    bool       is_changed = false;
    const auto prepare_at = [&](std::initializer_list<const char *> keys, const char * param) {
        if (json * schema = at(body, keys)) {
            is_changed |= prepare(*schema, param, /*must_hold =*/true);
        }
    };
    prepare_at({ "json_schema" }, "json_schema");
    prepare_at({ "response_format", "schema" }, "response_format");
    prepare_at({ "response_format", "json_schema", "schema" }, "response_format");
    prepare_at({ "text", "format", "schema" }, "text");
    prepare_at({ "output_config", "format", "schema" }, "output_config");
    if (json * tools = at(body, { "tools" }); tools && tools->is_array()) {
        for (size_t i = 0; i < tools->size(); ++i) {
            is_changed |= prepare_tool(tools->at(i));
        }
    }
    return is_changed;
}
