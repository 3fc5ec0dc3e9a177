#include "describe.h"

#include "json.h"
#include "model.h"

#include <cstdio>
#include <cstdlib>

using json = common_json;

static json profile_of(const pyskip_served_model & model) {
    if (!model.has_profile()) {
        return nullptr;
    }
    json curve = json::array();
    for (const pyskip_profile_point & point : model.curve()) {
        curve.push_back(
            json{ { "rate", point.rate }, { "ppl_ratio", point.ppl_ratio }, { "ideal_speedup", point.ideal_speedup } });
    }
    const json n_static = { { "loss", model.n_static(PYSKIP_STATIC_BY_LOSS) },
                            { "cosine", model.n_static(PYSKIP_STATIC_BY_COSINE) },
                            { "norm", model.n_static(PYSKIP_STATIC_BY_NORM) } };
    return json{ { "recommended", model.recommended() },
                 { "curve", curve },
                 { "max_attn", model.max_attention() },
                 { "max_static", n_static } };
}

server_http_res_ptr pyskip_describe_models(const server_http_req &) {
    const pyskip_served_model & model  = pyskip_server_model();
    json                        layers = json::array();
    for (int32_t il = 0; il < model.n_layer(); ++il) {
        if (model.layers()[il]) {
            layers.push_back(il);
        }
    }
    const double target_tps = model.standard_pace().target_tps;
    json         described  = { { "id", model.name() },
                                { "n_layer", model.n_layer() },
                                { "n_ctx", model.n_ctx() },
                                { "skippable", layers },
                                { "skip", model.standard().str() },
                                { "target_tps", target_tps > 0.0 ? json(target_tps) : json(nullptr) },
                                { "profile", profile_of(model) } };
    json         list       = json::array();
    list.push_back(described);
    auto res  = std::make_unique<server_http_res>();
    res->data = json{ { "data", list } }.dump_safe();
    return res;
}

static std::string text_of(server_http_res & res) {
    std::string text = res.data;
    std::string part;
    for (bool more = res.is_stream(); more;) {
        part.clear();
        more = res.next(part);
        text += part;
    }
    return text;
}

server_http_context::handler_t pyskip_describe_all(const server_http_context::handler_t & list,
                                                   const server_http_context::handler_t & ask) {
    return [list, ask](const server_http_req & req) {
        json       all   = json::array();
        const json named = json::parse(text_of(*list(req)));
        for (size_t i = 0; i < named.at("data").size(); ++i) {
            server_http_req one{ req.params, req.headers, req.path, "", "", {}, req.should_stop };
            one.params["model"] = named.at("data").at(i).at("id").get<std::string>();
            one.query_string    = "model=" + one.params["model"];
            const json told     = json::parse(text_of(*ask(one)));
            if (told.contains("data")) { // else it is not loaded, or failed
                all.insert(told.at("data"));
            }
        }
        auto res  = std::make_unique<server_http_res>();
        res->data = json{ { "data", all } }.dump_safe();
        return res;
    };
}

void pyskip_describe_start(const std::vector<std::string> & addresses) {
    if (std::getenv("LLAMA_SERVER_ROUTER_PORT")) {
        return; // the router says it
    }
    std::string where;
    for (const std::string & address : addresses) {
        where += (where.empty() ? "" : ", ") + address;
    }
    const std::string & name = pyskip_server_model().name();
    std::fprintf(stderr, "pyskip: serving %s at %s; Ctrl-C stops\n", name.empty() ? "models" : name.c_str(),
                 where.c_str());
}
