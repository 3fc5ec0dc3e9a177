// In front of upstream's handlers, in the same process: who may ask, and what. Called from upstream's server-http.cpp and from
// cpp-httplib (patches/), in the thread of the connection.

#pragma once

#include <memory>
#include <string>

struct common_params;

namespace httplib {
class Server;
struct Request;
struct Response;
} // namespace httplib

// A listener was made.
void pyskip_guard_setup(httplib::Server & server, const common_params & params);

// The head of a request was read. False: it was answered.
bool pyskip_guard_head(const httplib::Request & req, httplib::Response & res, const common_params & params);

// The body of a POST was read; `body`, its copy for the handler, is put into upstream's words. Its place in the server, to be
// held until it is answered; none if it was answered.
std::shared_ptr<void> pyskip_guard_body(const httplib::Request & req, httplib::Response & res, std::string & body);

// An answer with an error goes out. True: its body is what it should be.
bool pyskip_guard_error(httplib::Response & res);
