// JSON schemas before upstream's converter makes grammars of them (common/json-schema-to-grammar.cpp): what it would pass over
// is refused by name, what it reads otherwise than it is meant is written as it is. The one list of what is held: called by
// json-schema.cpp for pyskip.Llama and by native/server for requests.

#pragma once

#include "json.h"

#include <stdexcept>

// One line: what was found, what was expected, what to do.
struct pyskip_bad_schema : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// must_hold: no keyword may be passed over; else they are, as upstream does. Returns whether the schema was changed. Throws
// pyskip_bad_schema.
bool pyskip_schema_prepare(common_json & schema, bool must_hold);
