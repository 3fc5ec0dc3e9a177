// What a request says of skipping. Read and checked in the thread that received it, before it gets a slot.

#pragma once

#include "spec.h"

#include <memory>
#include <string>

class common_json;

struct pyskip_request {
    pyskip_spec   spec;
    std::string   text;              // the specification
    pyskip_pacing pacing;            // if there is one, the specification's rate is its floor
    bool          is_traced = false; // skip_trace
};

using pyskip_request_ptr = std::shared_ptr<const pyskip_request>;

// A request that cannot be answered, in OpenAI's words.
struct pyskip_refusal {
    int         status = 400;
    std::string message;
    std::string type = "invalid_request_error";
    std::string param;           // empty: none
    std::string code;            // empty: none
    int         retry_after = 0; // seconds, 0: not said

    std::string body() const;
};

pyskip_refusal pyskip_refuse(int status, const std::string & message, const std::string & code);

// 400 for one of its fields.
pyskip_refusal pyskip_refuse_field(const std::string & param, const std::string & message);

// `skip`, `skip_prompt`, `target_tps`, `max_skip` and `skip_trace` of a body. Throws pyskip_refusal.
pyskip_request_ptr pyskip_request_read(const common_json & body);

// What was checked already, for upstream's task_params: as above, and no more tokens than the server lets one request have.
pyskip_request_ptr pyskip_request_of(const common_json & body, int32_t & n_predict);

// The fields that a conversion of the body has left behind.
void pyskip_request_carry(const std::string & raw, common_json & converted);
