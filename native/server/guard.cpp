#include "guard.h"

#include "body.h"
#include "common.h"
#include "crash.h"
#include "deadline.h"
#include "hooks.h"
#include "json.h"
#include "metrics.h"
#include "places.h"
#include "request.h"
#include "settings.h"
#include "shutdown.h"
#include "ui.h"

#include <cpp-httplib/httplib.h>

#include <algorithm>
#include <cctype>
#include <set>
#include <string>

using json = common_json;

static const char * const CSP = // of the page: files of its own, nothing inline, nobody else's
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'";

namespace {

// Set up once, before the first request.
std::set<std::string> hosts; // that a request may call the server by; empty: any
std::string           prefix;

void refuse(httplib::Response & res, const pyskip_refusal & refusal) {
    res.status = refusal.status;
    res.set_content(refusal.body(), "application/json; charset=utf-8");
    res.set_header("Connection", "close"); // whatever of the request was not read
    if (refusal.retry_after > 0) {
        res.set_header("Retry-After", std::to_string(refusal.retry_after));
    }
}

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return (char) std::tolower(c); });
    return text;
}

std::string without_port(const std::string & host) {
    const size_t colon = host.rfind(':');
    const bool   is_port =
        colon != std::string::npos && host.find_first_not_of("0123456789", colon + 1) == std::string::npos;
    return is_port && host.find(']', colon) == std::string::npos ? host.substr(0, colon) : host;
}

bool is_loopback(const std::string & host) {
    return host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0;
}

// In a time that says nothing of how much of it is right.
bool equal(const std::string & given, const std::string & key) {
    unsigned differ = given.size() != key.size();
    for (size_t i = 0; i < key.size(); ++i) {
        differ |= (unsigned char) key[i] ^ (unsigned char) (given.empty() ? 0 : given[i % given.size()]);
    }
    return differ == 0;
}

bool has_key(const httplib::Request & req, const std::vector<std::string> & keys) {
    std::string given = req.get_header_value("Authorization");
    given             = given.rfind("Bearer ", 0) == 0 ? given.substr(7) : req.get_header_value("X-Api-Key");
    bool found        = false;
    for (const std::string & key : keys) {
        found |= equal(given, key);
    }
    return found;
}

// What can be had without a key: the page, and whether the server is there.
bool is_open(const std::string & path) {
    const std::string own = path.rfind(prefix, 0) == 0 ? path.substr(prefix.size()) : path;
    return own == "/" || own == "/health" || own == "/v1/health" ||
           llama_ui_find_asset(own.empty() ? "" : own.substr(1));
}

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Of a POST: JSON, or a form where audio is sent.
void check_type(const httplib::Request & req) {
    const bool is_form = req.is_multipart_form_data() && ends_with(req.path, "/transcriptions");
    if (!is_form && lower(req.get_header_value("Content-Type")).rfind("application/json", 0) != 0) {
        // what a page of another origin may send without being asked first
        throw pyskip_refuse(400, "the header Content-Type is not application/json: send JSON, and say so", "");
    }
}

} // namespace

void pyskip_guard_setup(httplib::Server & server, const common_params & params) {
    const pyskip_settings & settings = pyskip_server_settings();
    server.set_default_headers({
        { "Content-Security-Policy", CSP },
        { "X-Content-Type-Options", "nosniff" },
        { "X-Frame-Options", "DENY" },
        { "Referrer-Policy", "no-referrer" },
    });
    server.set_payload_max_length(settings.max_body);
    server.set_read_timeout(settings.timeout);
    server.set_write_timeout(settings.timeout);
    server.set_logger([](const httplib::Request & req, const httplib::Response & res) {
        // what leads nowhere is not counted by its name: anybody could make up more of them
        const bool is_known = res.status != 404 && !req.matched_route.empty();
        pyskip_server_metrics().answered(is_known ? req.matched_route : "other", res.status);
    });
    pyskip_shutdown_watch();

    prefix              = params.api_prefix;
    const bool is_local = std::all_of(params.hostnames.begin(), params.hostnames.end(), is_loopback);
    if (is_local && params.api_keys.empty()) {
        hosts = { "localhost", "127.0.0.1", "[::1]" };
        for (const std::string & host : params.hostnames) {
            hosts.insert(host.find(':') == std::string::npos ? lower(host) : "[" + lower(host) + "]");
        }
    }
    pyskip_server_places().open(std::max(params.n_parallel, 1), settings.max_queue);
}

bool pyskip_guard_head(const httplib::Request & req, httplib::Response & res, const common_params & params) {
    pyskip_crash_stack();
    pyskip_hook_ask_gone(nullptr);
    if (!req.has_header("Content-Length") && !req.has_header("Transfer-Encoding")) {
        pyskip_deadline_met();
    }
    const auto fail = [&](int status, const std::string & message, const std::string & code) {
        refuse(res, pyskip_refuse(status, message, code));
        return false;
    };
    const std::string host = lower(req.get_header_value("Host"));
    if (!hosts.empty() && hosts.count(without_port(host)) == 0) {
        // to a browser, a site whose name was made to lead here is of the same origin: it could ask and read
        std::string names;
        for (const std::string & name : hosts) {
            names += (names.empty() ? "" : ", ") + name;
        }
        return fail(
            403, "without an API key the server answers to " + names + ", found the host '" + host.substr(0, 60) + "'",
            "invalid_host");
    }
    const std::string origin = lower(req.get_header_value("Origin"));
    if (!origin.empty() && origin != "http://" + host && origin != "https://" + host &&
        params.cors_origins == "localhost") {
        return fail(403,
                    "the page of another origin asks, '" + origin.substr(0, 60) +
                        "', expected none: open the server's own page",
                    "invalid_origin");
    }
    if (!params.api_keys.empty() && !is_open(req.path) && !has_key(req, params.api_keys)) {
        res.set_header("WWW-Authenticate", "Bearer");
        return fail(401, "no API key, or another one, expected the header Authorization: Bearer KEY",
                    "invalid_api_key");
    }
    if (pyskip_is_shutting_down()) {
        return fail(503, "the server is shutting down: ask another, or later", "shutting_down");
    }
    return true;
}

std::shared_ptr<void> pyskip_guard_body(const httplib::Request & req, httplib::Response & res, std::string & body) {
    pyskip_deadline_met();
    pyskip_hook_ask_gone(&req.is_connection_closed); // until this thread has another request
    int32_t n_places = 1;
    try {
        check_type(req);
        if (!req.is_multipart_form_data()) {
            n_places = pyskip_body_check(req.path, body);
        }
    } catch (const pyskip_refusal & refusal) {
        refuse(res, refusal);
        return nullptr;
    }
    if (!pyskip_body_computes(req.path)) {
        return std::make_shared<int>(0);
    }
    std::shared_ptr<void> place = pyskip_server_places().take(n_places, req.is_connection_closed);
    if (!place) {
        pyskip_refusal refusal = pyskip_refuse(429, "the queue is full: ask again later", "queue_full");
        refusal.retry_after    = 1 + pyskip_server_places().n_waiting() / 8;
        refuse(res, refusal);
    }
    return place;
}

// A message of upstream's as one line, without what it says of its own parts.
static std::string plain(std::string message) {
    std::replace(message.begin(), message.end(), '\n', ' ');
    const size_t schema = message.find("JSON schema error at ");
    if (schema != std::string::npos) {
        return "the schema has no grammar (" + message.substr(schema) + "): change it";
    }
    if (ends_with(message, "initialize samplers: std::exception")) { // what it was is lost on the way
        return "the schema or the tools have no grammar that can be walked (it goes on in too many ways): make them "
               "smaller";
    }
    return message;
}

// Upstream's errors in OpenAI's shape: a code is a word, and there is a param.
static void tidy(httplib::Response & res) {
    json body;
    try {
        body = json::parse(res.body);
    } catch (const std::exception &) {
        return;
    }
    if (!body.is_object() || !body.contains("error") || !body.at("error").is_object()) {
        return;
    }
    json &            error   = body.at("error");
    const std::string message = plain(error.value("message", ""));
    const std::string field   = "Field '";
    error["message"]          = message;
    if (message.find("is too large to process") != std::string::npos) { // the client's fault, and no server's
        res.status     = 400;
        error["type"]  = "invalid_request_error";
        error["code"]  = "context_length_exceeded";
        error["param"] = "input";
    }
    if (!error.contains("param")) {
        const size_t end = message.rfind(field, 0) == 0 ? message.find('\'', field.size()) : std::string::npos;
        error["param"] =
            end == std::string::npos ? json(nullptr) : json(message.substr(field.size(), end - field.size()));
    }
    if (!error.contains("code") || error.at("code").is_number()) {
        const bool is_long = error.value("type", "") == "exceed_context_size_error";
        error["code"]      = is_long ? json("context_length_exceeded") : json(nullptr);
    }
    if (res.status == 400 && message.rfind("model '", 0) == 0 && ends_with(message, "' not found")) { // the router's
        res.status     = 404;
        error["param"] = "model";
        error["code"]  = "model_not_found";
    }
    res.body = body.dump_safe();
}

bool pyskip_guard_error(httplib::Response & res) {
    if (res.content_provider_) {
        return true; // another process's, passed on
    }
    if (!res.body.empty()) {
        tidy(res);
        return true;
    }
    const pyskip_settings & settings = pyskip_server_settings();
    if (pyskip_deadline_missed()) {
        const std::string time = std::to_string(settings.timeout) + " s";
        refuse(res, pyskip_refuse(408, "the request did not come within " + time, "request_timeout"));
    } else if (res.status == 413) {
        refuse(res, pyskip_refuse(413,
                                  "the body has more than " + std::to_string(settings.max_body) +
                                      " bytes: send less, or start the server with a larger --max-body",
                                  "request_too_large"));
    } else if (res.status == 404) {
        refuse(res, pyskip_refuse(404, "there is nothing at this address: docs/server.md lists what is", "not_found"));
    } else {
        refuse(res, pyskip_refuse(res.status, "the request cannot be answered: it is malformed, or was cut off", ""));
    }
    return true;
}
