#include "request.h"

#include "json.h"
#include "model.h"
#include "settings.h"

#include <cmath>

using json = common_json;

std::string pyskip_refusal::body() const {
    const auto or_null = [](const std::string & text) { return text.empty() ? json(nullptr) : json(text); };
    return json{
        { "error", json{ { "message", message.substr(0, 500) },
                         { "type", type },
                         { "param", or_null(param) },
                         { "code", or_null(code) } } }
    }.dump_safe();
}

pyskip_refusal pyskip_refuse(int status, const std::string & message, const std::string & code) {
    pyskip_refusal refusal;
    refusal.status  = status;
    refusal.message = message;
    refusal.code    = code;
    if (status == 401) {
        refusal.type = "authentication_error";
    } else if (status == 403) {
        refusal.type = "permission_error";
    } else if (status == 429) {
        refusal.type = "rate_limit_error";
    } else if (status == 503) {
        refusal.type = "unavailable_error";
    }
    return refusal;
}

static pyskip_refusal refused(const std::string & param, const std::string & message) {
    pyskip_refusal refusal;
    refusal.param   = param;
    refusal.code    = param == "skip" || param == "skip_prompt" ? "invalid_skip" : "";
    refusal.message = message;
    return refusal;
}

static bool has(const json & body, const char * name) {
    return body.contains(name) && !body.at(name).is_null();
}

static pyskip_spec read_spec(const json & skip) {
    if (skip.is_string()) {
        return pyskip_spec_parse(skip.get<std::string>());
    }
    if (skip.is_number()) {
        return pyskip_spec_of_rate(skip.get<double>());
    }
    throw pyskip_bad_spec(
        "skip is neither a number nor a text, expected a rate such as 0.25 or a specification such as 'off'");
}

pyskip_request_ptr pyskip_request_read(const json & body) {
    const pyskip_served_model & model   = pyskip_server_model();
    auto                        request = std::make_shared<pyskip_request>();
    request->spec                       = model.standard();
    std::string param                   = "skip";
    try {
        if (has(body, "skip")) {
            request->spec = read_spec(body.at("skip"));
        }
        if (has(body, "skip_prompt")) {
            param = "skip_prompt";
            if (!body.at("skip_prompt").is_number()) {
                throw pyskip_bad_spec("skip_prompt is no number, expected a rate from 0 to 1");
            }
            request->spec = request->spec.with_prompt(body.at("skip_prompt").get<double>());
        }
        model.check(request->spec);
    } catch (const pyskip_bad_spec & e) {
        throw refused(param, e.what());
    }
    if (has(body, "skip_trace")) {
        if (!body.at("skip_trace").is_boolean()) {
            throw refused("skip_trace", "skip_trace is neither true nor false, expected one of them");
        }
        request->is_traced = body.at("skip_trace").get<bool>();
    }
    request->text = request->spec.str();
    return request;
}

pyskip_request_ptr pyskip_request_of(const json & body, int32_t & n_predict) {
    const int32_t most = pyskip_server_settings().max_tokens;
    if (most > 0 && (n_predict < 0 || n_predict > most)) {
        n_predict = most;
    }
    try {
        return pyskip_request_read(body);
    } catch (const pyskip_refusal & refusal) { // of a body that came by another way than over HTTP
        throw std::invalid_argument(refusal.message);
    }
}

void pyskip_request_carry(const std::string & raw, json & converted) {
    const json body = json::parse(raw);
    for (const char * name : { "skip", "skip_prompt", "skip_trace" }) {
        if (has(body, name)) {
            converted[name] = body.at(name);
        }
    }
}
