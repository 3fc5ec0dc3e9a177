// Upstream's converter of JSON schemas, without the rest of upstream's common library, of which it needs three functions.
// Compiled apart from libllama's own files: both have a unicode.h. Called by api.cpp for pyskip.Llama's response_format.

#include "json-schema.h"

#include "common.h"
#include "json-schema-to-grammar.h"
#include "schema-check.h"

std::string string_join(const std::vector<std::string> & values, const std::string & separator) {
    std::string all;
    for (size_t i = 0; i < values.size(); ++i) {
        all += (i == 0 ? "" : separator) + values[i];
    }
    return all;
}

std::vector<std::string> string_split(const std::string & text, const std::string & delimiter) {
    std::vector<std::string> parts;
    size_t                   begin = 0;
    for (size_t end = text.find(delimiter); end != std::string::npos; end = text.find(delimiter, begin)) {
        parts.push_back(text.substr(begin, end - begin));
        begin = end + delimiter.size();
    }
    parts.push_back(text.substr(begin));
    return parts;
}

std::string string_repeat(const std::string & text, size_t n) {
    std::string all;
    for (size_t i = 0; i < n; ++i) {
        all += text;
    }
    return all;
}

bool pyskip_schema_to_gbnf(const std::string & text, std::string & out) {
    try {
        common_json schema = common_json::parse(text);
        pyskip_schema_prepare(schema, /*must_hold =*/true);
        out = json_schema_to_grammar(schema, /*force_gbnf =*/true);
        return true;
    } catch (const pyskip_bad_schema & e) {
        out = e.what();
        return false;
    }
}
