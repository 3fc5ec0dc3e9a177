#include "profile-fields.h"

#include <cstdio>

bool pyskip_profile_fields::fail(const std::string & field, const std::string & found, const std::string & expected) {
    error = std::string(path) + ": " + field + ": found " + found + ", expected " + expected +
            ": make the profile again with pyskip calibrate";
    return false;
}

bool pyskip_profile_fields::text(const char * key, char * out, size_t n_out, bool is_needed) {
    const int64_t id = gguf_find_key(gguf.get(), key);
    if (id < 0) {
        return !is_needed || fail(key, "none", "a text");
    }
    if (gguf_get_kv_type(gguf.get(), id) != GGUF_TYPE_STRING) {
        return fail(key, "another type", "a text");
    }
    std::snprintf(out, n_out, "%s", gguf_get_val_str(gguf.get(), id));
    return true;
}

bool pyskip_profile_fields::number(const char * key, int64_t low, int64_t high, int64_t & out) {
    const int64_t id = gguf_find_key(gguf.get(), key);
    if (id < 0 || gguf_get_kv_type(gguf.get(), id) != GGUF_TYPE_UINT32) {
        return fail(key, id < 0 ? "none" : "another type", "a uint32");
    }
    out = gguf_get_val_u32(gguf.get(), id);
    if (out < low || out > high) {
        return fail(key, std::to_string(out), std::to_string(low) + " to " + std::to_string(high));
    }
    return true;
}

bool pyskip_profile_fields::array(const std::string & key, gguf_type type, const char * name, size_t most, size_t & n,
                                  const void *& data) {
    const int64_t id = gguf_find_key(gguf.get(), key.c_str());
    if (id < 0 || gguf_get_kv_type(gguf.get(), id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(gguf.get(), id) != type) {
        return fail(key, id < 0 ? "none" : "another type", std::string("a ") + name + " array");
    }
    const size_t found = gguf_get_arr_n(gguf.get(), id);
    if (found == 0 || (n == 0 ? found > most : found != n)) {
        return fail(key, std::to_string(found) + " values", std::to_string(n) + " (1 to " + std::to_string(most) + ")");
    }
    n    = found;
    data = gguf_get_arr_data(gguf.get(), id);
    return true;
}
