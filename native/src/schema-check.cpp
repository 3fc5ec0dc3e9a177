#include "schema-check.h"

#include "pattern.h"
#include "schema-limits.h"
#include "schema-root.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

using json  = common_json;
using names = std::set<std::string>;

static constexpr int MAX_DEPTH = 64; // the converter recurses

static const names SAYS_NOTHING = { "$anchor",         "$comment",         "$defs",   "$id",         "$schema",
                                    "contentEncoding", "contentMediaType", "default", "definitions", "deprecated",
                                    "description",     "discriminator",    "example", "examples",    "readOnly",
                                    "title",           "writeOnly" };
static const names FORMATS      = { "date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5" };
static const names OBJECT       = { "properties", "required", "additionalProperties" };
static const names ARRAY        = { "items", "prefixItems", "minItems", "maxItems" };
static const names STRING       = { "pattern", "format", "minLength", "maxLength" };
static const names INTEGER      = { "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum" };

namespace {

[[noreturn]] void not_held(const std::string & where, const std::string & keyword, const std::string & why = "") {
    throw pyskip_bad_schema("the schema's " + keyword + " at " + where + " cannot be held by a grammar" +
                            (why.empty() ? "" : " (" + why + ")") + ": leave it out and check the answer for it");
}

bool has_any(const json & schema, const names & keys) {
    return std::any_of(keys.begin(), keys.end(), [&](const std::string & key) { return schema.contains(key); });
}

names with(names some, const names & more) {
    some.insert(more.begin(), more.end());
    return some;
}

bool says_nothing(const std::string & key) {
    return SAYS_NOTHING.count(key) > 0 || key.rfind("x-", 0) == 0;
}

std::string text_at(const json & schema, const char * key) {
    return schema.contains(key) && schema.at(key).is_string() ? schema.at(key).get<std::string>() : "";
}

// The keywords that decide in a schema of this type, "" for none; the others are passed over (common/json-schema.cpp).
names held_by(const json & schema, const std::string & type) {
    for (const char * alone : { "const", "enum" }) {
        if (schema.contains(alone)) {
            return { alone, "type" };
        }
    }
    if (type.empty()) {
        const bool is_closed = schema.contains("additionalProperties") && schema.at("additionalProperties") != true;
        if (schema.contains("properties") || is_closed) {
            return OBJECT;
        }
        if (schema.contains("allOf")) {
            return { "allOf" };
        }
        if (schema.contains("items") || schema.contains("prefixItems")) {
            return ARRAY;
        }
        return has_any(schema, STRING) ? STRING : names{};
    }
    if ((type == "object" || type == "string") && schema.contains("allOf") && !schema.contains("properties")) {
        return { "type", "allOf" };
    }
    const names   none;
    const names & own = type == "object"    ? OBJECT
                        : type == "array"   ? ARRAY
                        : type == "string"  ? STRING
                        : type == "integer" ? INTEGER
                                            : none;
    return with(own, { "type" });
}

names held_in(const json & schema) {
    for (const char * alone : { "$ref", "oneOf", "anyOf" }) {
        if (schema.contains(alone)) {
            return { alone };
        }
    }
    if (!schema.contains("type") || !schema.at("type").is_array()) {
        return held_by(schema, text_at(schema, "type"));
    }
    names        held     = { "type" };
    bool         is_loose = false; // of a number no bounds are held
    const json & types    = schema.at("type");
    for (size_t i = 0; i < types.size(); ++i) {
        const std::string type = types.at(i).is_string() ? types.at(i).get<std::string>() : "";
        held                   = with(held, held_by(schema, type));
        is_loose |= type == "number";
    }
    for (auto key = INTEGER.begin(); is_loose && key != INTEGER.end(); ++key) {
        held.erase(*key);
    }
    return held;
}

// Of keywords that hold together with some values, or some others, only.
void check_values(const json & schema, const std::string & where) {
    if (schema.contains("format") && FORMATS.count(text_at(schema, "format")) == 0) {
        not_held(where, "format", schema.at("format").dump_safe().substr(0, 60));
    }
    for (const char * decides : { "pattern", "format" }) {
        for (const char * beside : { "format", "minLength", "maxLength" }) {
            if (schema.contains(decides) && schema.contains(beside) && std::string(decides) != beside) {
                not_held(where, beside, std::string("beside ") + decides);
            }
        }
    }
    if (schema.contains("items") && schema.contains("prefixItems")) {
        not_held(where, "prefixItems", "beside items");
    }
    for (const char * list : { "items", "prefixItems" }) {
        for (const char * count : { "minItems", "maxItems" }) {
            if (schema.contains(list) && schema.at(list).is_array() && schema.contains(count)) {
                not_held(where, count, std::string("beside a list of ") + list);
            }
        }
    }
    if (schema.contains("minimum") && schema.contains("exclusiveMinimum")) {
        not_held(where, "exclusiveMinimum", "beside minimum");
    }
    if (schema.contains("maximum") && schema.contains("exclusiveMaximum")) {
        not_held(where, "exclusiveMaximum", "beside maximum");
    }
    const json properties = schema.value("properties", json::object());
    const json required   = schema.value("required", json::array());
    for (size_t i = 0; required.is_array() && i < required.size(); ++i) {
        const std::string name = required.at(i).is_string() ? required.at(i).get<std::string>() : "";
        if (!properties.is_object() || !properties.contains(name)) {
            not_held(where, "required", "'" + name.substr(0, 60) + "' is not among its properties");
        }
    }
}

// (least, most, by how much these must differ)
struct bound {
    const char * least;
    const char * most;
    double       gap;
};

const bound BOUNDS[] = {
    { "minItems", "maxItems", 0 },        { "minLength", "maxLength", 0 },
    { "minimum", "maximum", 0 },          { "minimum", "exclusiveMaximum", 1 },
    { "exclusiveMinimum", "maximum", 1 }, { "exclusiveMinimum", "exclusiveMaximum", 2 },
};

void check_bounds(const json & schema, const std::string & where) {
    for (const bound & b : BOUNDS) {
        if (!schema.contains(b.least) || !schema.contains(b.most)) {
            continue;
        }
        const json least = schema.at(b.least);
        const json most  = schema.at(b.most);
        if (least.is_number() && most.is_number() && least.get<double>() + b.gap > most.get<double>()) {
            throw pyskip_bad_schema(std::string("the schema has ") + b.least + " " + least.dump_safe() + " and " +
                                    b.most + " " + most.dump_safe() + " at " + where +
                                    ", which no value holds to: correct them");
        }
    }
}

void check_keywords(const json & schema, const std::string & where) {
    const names held = held_in(schema);
    for (const auto & item : schema.items()) {
        if (held.count(item.key()) == 0 && !says_nothing(item.key())) {
            not_held(where, item.key());
        }
    }
    check_values(schema, where);
}

// What the schema of an allOf is about: the one keyword that it has beside its type, through references; "" if it has others.
std::string kind_of_part(const json & given, const json & root) {
    const json * part = &given;
    for (int n = 0; n < MAX_DEPTH && part->is_object() && part->contains("$ref"); ++n) {
        std::string  path   = text_at(*part, "$ref");
        const json * target = &root;
        for (size_t at = path.find('/'); at != std::string::npos;) {
            const size_t      end  = path.find('/', at + 1);
            const std::string name = path.substr(at + 1, end == std::string::npos ? end : end - at - 1);
            if (!target->is_object() || !target->contains(name)) {
                return "";
            }
            target = &target->at(name);
            at     = end;
        }
        part = target;
    }
    if (!part->is_object()) {
        return "";
    }
    std::vector<std::string> left;
    for (const auto & item : part->items()) {
        if (!says_nothing(item.key()) && item.key() != "type" && item.key() != "required") {
            left.push_back(item.key());
        }
    }
    return left.size() == 1 ? left[0] : "";
}

struct preparation {
    json &     root;
    const bool must_hold;
    bool       is_changed = false;

    void prepare(json & schema, const std::string & where, int depth) {
        if (depth > MAX_DEPTH) {
            throw pyskip_bad_schema("the schema is nested deeper than " + std::to_string(MAX_DEPTH) +
                                    ", expected less: use $ref");
        }
        if (!schema.is_object()) {
            if (must_hold) {
                throw pyskip_bad_schema("the schema has " + schema.dump_safe().substr(0, 40) + " at " + where +
                                        ", expected an object");
            }
            return; // upstream's error
        }
        pyskip_schema_limit(schema);
        check_bounds(schema, where);
        if (must_hold) {
            check_keywords(schema, where);
        }
        if (schema.contains("pattern")) {
            prepare_pattern(schema, where);
        }
        if (schema.contains("allOf") && schema.at("allOf").is_array() && prepare_all_of(schema, where, depth)) {
            return;
        }
        prepare_within(schema, where, depth);
    }

    void prepare_pattern(json & schema, const std::string & where) {
        const std::string pattern = schema.at("pattern").get<std::string>();
        const std::string plain   = pyskip_pattern_plain(pattern);
        const std::string why     = must_hold ? pyskip_pattern_unheld(plain) : "";
        if (!why.empty()) {
            not_held(where, "pattern", why);
        }
        if (plain != pattern) {
            schema["pattern"] = plain;
            is_changed        = true;
        }
    }

    // The converter knows properties and enums in an allOf, and makes an empty object of all else: where it has one part, that
    // part stands for it. Returns whether it does.
    bool prepare_all_of(json & schema, const std::string & where, int depth) {
        for (const auto & item : schema.items()) {
            if (!says_nothing(item.key()) && item.key() != "allOf" && item.key() != "type") {
                return false;
            }
        }
        const json parts = schema.at("allOf");
        if (parts.size() == 1 && parts.at(0).is_object()) {
            json only = parts.at(0);
            for (const char * key : { "$defs", "definitions" }) {
                if (schema.contains(key)) {
                    only[key] = schema.at(key);
                }
            }
            schema     = only;
            is_changed = true;
            prepare(schema, where + "/allOf/0", depth + 1);
            return true;
        }
        names kinds;
        for (size_t i = 0; i < parts.size(); ++i) {
            kinds.insert(kind_of_part(parts.at(i), root));
        }
        if (must_hold && kinds != names{ "properties" } && kinds != names{ "enum" }) {
            not_held(where, "allOf", "expected objects with properties only, or enums only");
        }
        return false;
    }

    void prepare_within(json & schema, const std::string & where, int depth) {
        for (const char * named : { "properties", "$defs", "definitions" }) {
            if (schema.contains(named) && schema.at(named).is_object()) {
                for (const auto & item : schema.at(named).items()) {
                    prepare(item.value(), where + "/" + named + "/" + item.key(), depth + 1);
                }
            }
        }
        for (const char * key : { "items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf", "not" }) {
            if (!schema.contains(key)) {
                continue;
            }
            json & inner = schema.at(key);
            if (inner.is_object()) {
                prepare(inner, where + "/" + key, depth + 1);
            }
            for (size_t i = 0; inner.is_array() && i < inner.size(); ++i) {
                prepare(inner.at(i), where + "/" + key + "/" + std::to_string(i), depth + 1);
            }
        }
    }
};

} // namespace

bool pyskip_schema_prepare(json & schema, bool must_hold) {
    pyskip_schema_limit_size(schema);
    preparation whole{ schema, must_hold };
    whole.prepare(schema, "#", 0);
    return pyskip_schema_name_root(schema) || whole.is_changed;
}
