// The JSON schemas in a request, and those within them.

#pragma once

#include <functional>
#include <string>

class common_json;

// Calls `see` with each schema of a body and the field that it stands in. What it returns tells whether it was changed;
// that of any is returned.
using pyskip_see_schema = std::function<bool(common_json & schema, const std::string & param)>;

bool pyskip_schemas(common_json & body, const pyskip_see_schema & see);
