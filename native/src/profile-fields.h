// The metadata of a profile file, field by field, each with its type and range checked. Used by profile.cpp, which knows the fields.

#pragma once

#include "gguf-file.h"
#include "gguf.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

class pyskip_profile_fields {
protected:
    pyskip_profile_fields(const char * path, std::string & error) : path(path), error(error) {}

    // False, with the line.
    bool fail(const std::string & field, const std::string & found, const std::string & expected);

    bool text(const char * key, char * out, size_t n_out, bool is_needed);

    bool number(const char * key, int64_t low, int64_t high, int64_t & out);

    // An array of n values; if n is 0 of any number up to `most`, which n becomes.
    bool array(const std::string & key, gguf_type type, const char * name, size_t most, size_t & n, const void *& data);

    // One member of each entry, from an array of as many values. The first array says how many entries there are.
    template <typename T>
    bool points(const std::string & key, size_t most, std::vector<T> & entries, float low, float high,
                float T::* member) {
        size_t       n    = entries.size();
        const void * data = nullptr;
        if (!array(key, GGUF_TYPE_FLOAT32, "float32", most, n, data)) {
            return false;
        }
        entries.resize(n);
        for (size_t i = 0; i < n; ++i) {
            const float value = ((const float *) data)[i];
            if (!(value >= low && value <= high)) {
                return fail(key, std::to_string(value), std::to_string(low) + " to " + std::to_string(high));
            }
            entries[i].*member = value;
        }
        return true;
    }

    const char *    path;
    std::string &   error;
    pyskip_gguf_ptr gguf;
};
