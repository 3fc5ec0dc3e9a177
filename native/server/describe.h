// What the server says of itself: GET /pyskip/models, and a line when it is there.

#pragma once

#include "server-http.h"

#include <string>
#include <vector>

server_http_res_ptr pyskip_describe_models(const server_http_req & req);

// The same of several models, whose names `list` says and each of which answers by `ask`: upstream's router's.
server_http_context::handler_t pyskip_describe_all(const server_http_context::handler_t & list,
                                                   const server_http_context::handler_t & ask);

// Connections are taken at these addresses, the model is loaded.
void pyskip_describe_start(const std::vector<std::string> & addresses);
