// What the server says of itself: GET /pyskip/models, and a line when it is there.

#pragma once

#include "server-http.h"

#include <string>
#include <vector>

server_http_res_ptr pyskip_describe_models(const server_http_req & req);

// Connections are taken at these addresses, the model is loaded.
void pyskip_describe_start(const std::vector<std::string> & addresses);
