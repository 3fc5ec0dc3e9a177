#include "metrics.h"

#include "model.h"
#include "places.h"
#include "turn.h"

#include <sstream>

pyskip_metrics & pyskip_server_metrics() {
    static pyskip_metrics metrics;
    return metrics;
}

void pyskip_metrics::add(const pyskip_skips & skips, int32_t n_layer) {
    const std::lock_guard<std::mutex> lock(mutex);
    skipped.resize(n_layer, 0);
    attention_skipped.resize(n_layer, 0);
    n_tokens++;
    for (const int32_t il : skips.ffn) {
        skipped[il]++;
    }
    for (const int32_t il : skips.attention) {
        attention_skipped[il]++;
    }
}

void pyskip_metrics::answered(const std::string & path, int status) {
    const std::lock_guard<std::mutex> lock(mutex);
    requests[{ path, status }]++;
}

// As the value of a label.
static std::string quoted(const std::string & text) {
    std::string out = "\"";
    for (const char c : text) {
        out += c == '\n' ? "\\n" : c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
    }
    return out + "\"";
}

std::string pyskip_metrics::text() const {
    const std::lock_guard<std::mutex> lock(mutex);
    std::ostringstream                out;
    const std::string                 model = quoted(pyskip_server_model().name());
    const auto                        head  = [&](const char * name, const char * type, const char * help) {
        out << "# HELP pyskip_" << name << " " << help << "\n# TYPE pyskip_" << name << " " << type << "\n";
    };
    const auto by_layer = [&](const char * name, const char * help, const std::vector<int64_t> & n_skipped) {
        head(name, "counter", help);
        for (size_t il = 0; il < n_skipped.size(); ++il) {
            const std::string labels = "{model=" + model + ",layer=\"" + std::to_string(il) + "\",outcome=";
            out << "pyskip_" << name << labels << "\"evaluated\"} " << n_tokens - n_skipped[il] << "\n";
            out << "pyskip_" << name << labels << "\"skipped\"} " << n_skipped[il] << "\n";
        }
    };
    by_layer("ffn_blocks_total", "FFN blocks of tokens that were generated under a policy other than off", skipped);
    by_layer("attention_total", "The same of attention", attention_skipped);
    head("requests_total", "counter", "Requests that were answered");
    for (const auto & [key, n] : requests) {
        out << "pyskip_requests_total{path=" << quoted(key.first) << ",status=\"" << key.second << "\"} " << n << "\n";
    }
    head("slots", "gauge", "Requests that are decoded at a time");
    out << "pyskip_slots " << pyskip_server_places().n_slots() << "\n";
    head("requests_running", "gauge", "Requests for text or embeddings that are there");
    out << "pyskip_requests_running " << pyskip_server_places().n_taken() << "\n";
    head("queue_depth", "gauge", "Requests that wait for a slot");
    out << "pyskip_queue_depth " << pyskip_server_places().n_waiting() << "\n";
    return out.str();
}
