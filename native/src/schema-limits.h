// Schemas whose grammars have no end, or take minutes to make. Called by schema-check.cpp for each schema within one.

#pragma once

#include "json.h"

// Throws pyskip_bad_schema for one that is too long as a whole.
void pyskip_schema_limit_size(const common_json & schema);

// Likewise for what counts, bounds, names or matches too much. Not of those within it.
void pyskip_schema_limit(const common_json & schema);
