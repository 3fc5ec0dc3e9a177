#include "schema-limits.h"

#include "schema-check.h"

#include <cstdio>
#include <set>
#include <string>

using json = common_json;

static constexpr size_t MAX_SCHEMA = 65536; // characters
static constexpr size_t MAX_NAME   = 256; // bytes: std::regex, which makes names of rules of them, recurses once a byte
static constexpr size_t MAX_PATTERN  = 256;  // characters
static constexpr double MAX_REPEAT   = 1000; // of what a schema counts
static constexpr double MAX_NUMBER   = 1e15;
static constexpr size_t MAX_OPTIONAL = 200; // properties of one object: a rule for each pair of them
static constexpr size_t MAX_QUESTION = 32;  // optional parts of a pattern

static void fail(const std::string & line) {
    throw pyskip_bad_schema("the schema has no grammar (" + line + "): change it");
}

static std::string shown(double value) {
    char text[40];
    std::snprintf(text, sizeof(text), "%g", value);
    return text;
}

static void limit_pattern(const json & pattern) {
    if (!pattern.is_string()) {
        fail("pattern is no text");
    }
    const std::string text = pattern.get<std::string>();
    if (text.size() > MAX_PATTERN) {
        fail("pattern has " + std::to_string(text.size()) + " characters, expected up to " +
             std::to_string(MAX_PATTERN));
    }
    size_t n_question = 0;
    size_t digits     = 0;
    for (size_t i = 0; i < text.size(); ++i) {
        n_question += text[i] == '?';
        digits = text[i] >= '0' && text[i] <= '9' ? digits + 1 : 0;
        if (digits > 3) {
            fail("pattern counts beyond 999");
        }
        if (text[i] == '{' && i > 0 && (text[i - 1] == ')' || text[i - 1] == '}')) {
            fail("pattern has a group with a count");
        }
    }
    if (n_question > MAX_QUESTION) {
        fail("pattern has " + std::to_string(n_question) + " optional parts, expected up to " +
             std::to_string(MAX_QUESTION));
    }
}

static void limit_number(const json & schema, const char * key, double low, double high) {
    if (!schema.contains(key) || !schema.at(key).is_number()) {
        return;
    }
    const double value = schema.at(key).get<double>();
    if (!(value >= low && value <= high)) {
        fail(std::string(key) + " is " + shown(value) + ", expected " + shown(low) + " to " + shown(high));
    }
}

static void limit_type(const json & type) {
    static const std::set<std::string> known = { "object", "array", "string", "number", "integer", "boolean", "null" };
    for (size_t i = 0; type.is_array() && i < type.size(); ++i) {
        limit_type(type.at(i));
    }
    if (!type.is_array() && (!type.is_string() || known.count(type.get<std::string>()) == 0)) {
        fail("type is " + type.dump_safe().substr(0, 40) + ", expected one of JSON's");
    }
}

static void limit_name(const char * what, const std::string & name) {
    if (name.size() > MAX_NAME) {
        fail(std::string(what) + " has a name of " + std::to_string(name.size()) + " bytes, expected up to " +
             std::to_string(MAX_NAME));
    }
}

void pyskip_schema_limit_size(const json & schema) {
    const size_t n = schema.dump_safe().size();
    if (n > MAX_SCHEMA) {
        fail("it has " + std::to_string(n) + " characters, expected up to " + std::to_string(MAX_SCHEMA));
    }
}

void pyskip_schema_limit(const json & schema) {
    for (const char * key : { "minLength", "maxLength", "minItems", "maxItems" }) {
        limit_number(schema, key, 0.0, MAX_REPEAT);
    }
    for (const char * key : { "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum" }) {
        limit_number(schema, key, -MAX_NUMBER, MAX_NUMBER);
    }
    if (schema.contains("pattern")) {
        limit_pattern(schema.at("pattern"));
    }
    if (schema.contains("type")) {
        limit_type(schema.at("type"));
    }
    for (const char * key : { "properties", "$defs", "definitions" }) {
        if (schema.contains(key) && schema.at(key).is_object()) {
            for (const auto & item : schema.at(key).items()) {
                limit_name(key, item.key());
            }
        }
    }
    if (schema.contains("$ref") && schema.at("$ref").is_string()) {
        limit_name("$ref", schema.at("$ref").get<std::string>());
    }
    if (schema.contains("properties") && schema.at("properties").is_object()) {
        const size_t n_required =
            schema.contains("required") && schema.at("required").is_array() ? schema.at("required").size() : 0;
        if (schema.at("properties").size() > n_required + MAX_OPTIONAL) {
            fail("an object has more than " + std::to_string(MAX_OPTIONAL) + " optional properties");
        }
    }
}
