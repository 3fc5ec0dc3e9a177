// The JSON schemas in a request: what no grammar can be made of, or would not hold, is refused (native/src/schema-check.h).

#pragma once

class common_json;

// Of a body that is asked for text. Whether it was changed. Throws pyskip_refusal.
bool pyskip_schemas_prepare(common_json & body);
