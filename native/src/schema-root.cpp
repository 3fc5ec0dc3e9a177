#include "schema-root.h"

#include "json.h"

#include <set>
#include <string>

using json = common_json;

static const std::set<std::string> VALUES = { "const", "enum", "default", "examples" }; // no schemas

// Returns whether there are any; `name` in their place, if one is given.
static bool rename_references(json & node, const std::string & name) {
    bool found = false;
    for (size_t i = 0; node.is_array() && i < node.size(); ++i) {
        found |= rename_references(node.at(i), name);
    }
    if (!node.is_object()) {
        return found;
    }
    if (node.contains("$ref") && node.at("$ref") == "#") {
        found = true;
        if (!name.empty()) {
            node["$ref"] = "#/$defs/" + name;
        }
    }
    for (const auto & item : node.items()) {
        if (VALUES.count(item.key()) == 0) {
            found |= rename_references(item.value(), name);
        }
    }
    return found;
}

bool pyskip_schema_name_root(json & schema) {
    if (!schema.is_object() || !rename_references(schema, "")) {
        return false;
    }
    json        defs = schema.value("$defs", json::object());
    std::string name = "root";
    while (defs.contains(name)) {
        name += "_";
    }
    rename_references(schema, name);
    json root = schema;
    root.erase("$defs");
    defs       = schema.value("$defs", json::object());
    defs[name] = root;

    schema["$defs"] = defs;
    return true;
}
