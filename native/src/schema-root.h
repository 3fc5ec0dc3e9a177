// A JSON schema that refers to itself as a whole. Called by schema-check.cpp.

#pragma once

class common_json;

// Upstream's converter follows "#/$defs/NAME" and no "#": what it stands for gets a name among the definitions. Returns whether
// there was one.
bool pyskip_schema_name_root(common_json & schema);
