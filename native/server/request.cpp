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

pyskip_refusal pyskip_refuse_field(const std::string & param, const std::string & message) {
    pyskip_refusal refusal;
    refusal.param   = param;
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

static double read_number(const json & body, const char * name, const std::string & expected) {
    if (!body.at(name).is_number()) {
        throw pyskip_bad_spec(std::string(name) + " is no number, expected " + expected);
    }
    return body.at(name).get<double>();
}

// A request that names a policy keeps no pace unless it names that, too.
static void read_pacing(const json & body, pyskip_request & request, std::string & param) {
    const pyskip_served_model & model = pyskip_server_model();
    if (has(body, "skip")) {
        request.pacing = {};
    }
    if (has(body, "target_tps")) {
        param                     = "target_tps";
        request.pacing.target_tps = read_number(body, "target_tps", "tokens/s above 0");
        if (!(request.pacing.target_tps > 0.0)) {
            throw pyskip_bad_spec("target_tps is " + pyskip_number(request.pacing.target_tps) +
                                  ", expected tokens/s above 0");
        }
        if (!has(body, "skip")) {
            request.spec = model.floor();
        }
    }
    if (has(body, "max_skip")) {
        param                   = "max_skip";
        request.pacing.max_skip = read_number(body, "max_skip", "a rate above 0, up to 1");
        if (request.pacing.target_tps <= 0.0) {
            throw pyskip_bad_spec("max_skip is " + pyskip_number(request.pacing.max_skip) +
                                  " and there is no target_tps to keep: give one");
        }
        if (!(request.pacing.max_skip > 0.0 && request.pacing.max_skip <= 1.0)) {
            throw pyskip_bad_spec("max_skip is " + pyskip_number(request.pacing.max_skip) +
                                  ", expected a rate above 0, up to 1");
        }
    }
}

pyskip_request_ptr pyskip_request_read(const json & body) {
    const pyskip_served_model & model   = pyskip_server_model();
    auto                        request = std::make_shared<pyskip_request>();
    request->spec                       = model.standard();
    request->pacing                     = model.standard_pace();
    std::string param                   = "skip";
    try {
        if (has(body, "skip")) {
            request->spec = read_spec(body.at("skip"));
        }
        read_pacing(body, *request, param);
        if (has(body, "skip_prompt")) {
            param         = "skip_prompt";
            request->spec = request->spec.with_prompt(read_number(body, "skip_prompt", "a rate from 0 to 1"));
        }
        if (request->pacing.target_tps > 0.0) {
            param         = "skip";
            request->spec = request->spec.paced();
            param         = has(body, "max_skip") ? "max_skip" : "target_tps";
            model.check_pace(request->spec, request->pacing);
        }
        model.check(request->spec);
    } catch (const pyskip_bad_spec & e) {
        pyskip_refusal refusal = pyskip_refuse_field(param, e.what());
        refusal.code           = "invalid_skip";
        throw refusal;
    }
    if (has(body, "skip_trace")) {
        if (!body.at("skip_trace").is_boolean()) {
            throw pyskip_refuse_field("skip_trace", "skip_trace is neither true nor false, expected one of them");
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
    for (const char * name : { "skip", "skip_prompt", "target_tps", "max_skip", "skip_trace" }) {
        if (has(body, name)) {
            converted[name] = body.at(name);
        }
    }
}
