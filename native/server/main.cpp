// pyskip's server: upstream's, with a skip policy for every request. `pyskip serve` runs it. Takes pyskip's own flags and all
// of llama-server's. Where there are several models upstream's router starts it again for each, so what it was told goes on in
// the environment.

#include "pyskip.h"
#include "settings.h"
#include "shutdown.h"
#include "spec.h"
#include "system.h"

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

int llama_server(int argc, char ** argv); // upstream's server.cpp

namespace {

struct usage_error {
    std::string line;
};

double number(const std::string & what, const std::string & text, double low, double high) {
    char * end         = nullptr;
    errno              = 0;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !(value >= low && value <= high)) {
        throw usage_error{ what + " is '" + text + "', expected a number from " + pyskip_number(low) + " to " +
                           pyskip_number(high) };
    }
    return value;
}

struct flag {
    const char *                                                  name;
    const char *                                                  env;
    std::function<void(const std::string &, const std::string &)> read;
};

const std::vector<flag> & flags() {
    static pyskip_settings &       s      = pyskip_server_settings();
    static const std::vector<flag> listed = {
        { "--skip", "PYSKIP_SERVE_SKIP", [](auto &, auto & text) { s.skip          = text; } },
        { "--profile", "PYSKIP_SERVE_PROFILE", [](auto &, auto & text) { s.profile = text; } },
        { "--skip-prompt", "PYSKIP_SERVE_SKIP_PROMPT",
          [](auto & what, auto & text) { s.skip_prompt                             = number(what, text, 0, 1); } },
        { "--target-tps", "PYSKIP_SERVE_TARGET_TPS",
          [](auto & what, auto & text) { s.target_tps                              = number(what, text, 0, 1e9); } },
        { "--max-skip", "PYSKIP_SERVE_MAX_SKIP",
          [](auto & what, auto & text) { s.max_skip                                = number(what, text, 0, 1); } },
        { "--low-memory", "PYSKIP_SERVE_LOW_MEMORY",
          [](auto & what, auto & text) { s.low_memory                              = number(what, text, 0, 1) > 0; } },
        { "--lossless", "PYSKIP_SERVE_LOSSLESS",
          [](auto & what, auto & text) {
              if (text != "on" && text != "always") {
                  throw usage_error{ what + " is '" + text + "', expected on or always" };
              }
              s.lossless = text;
          } },
        { "--default-model", "PYSKIP_SERVE_DEFAULT_MODEL", [](auto &, auto & text) { s.default_model = text; } },
        { "--only-named", "PYSKIP_SERVE_ONLY_NAMED",
          [](auto & what, auto & text) { s.only_named = number(what, text, 0, 1) > 0; } },
        { "--max-queue", "PYSKIP_SERVE_MAX_QUEUE",
          [](auto & what, auto & text) { s.max_queue  = (int32_t) number(what, text, 0, 100000); } },
        { "--max-body", "PYSKIP_SERVE_MAX_BODY",
          [](auto & what, auto & text) { s.max_body   = (size_t) number(what, text, 1, 1e12); } },
        { "--max-tokens", "PYSKIP_SERVE_MAX_TOKENS",
          [](auto & what, auto & text) { s.max_tokens = (int32_t) number(what, text, 1, INT_MAX); } },
        { "--timeout", "PYSKIP_SERVE_TIMEOUT",
          [](auto & what, auto & text) { s.timeout    = (int32_t) number(what, text, 1, 86400); } },
        { "--grace", "PYSKIP_SERVE_GRACE", [](auto & what, auto & text) { s.grace = number(what, text, 0, 86400); } },
        { "--kernels", "PYSKIP_SERVE_KERNELS",
          [](auto & what, auto & text) {
              if (text != "fast" && text != "upstream") {
                  throw usage_error{ what + " is '" + text + "', expected fast or upstream" };
              }
              pyskip_kernels_set(text == "fast" ? PYSKIP_KERNELS_FAST : PYSKIP_KERNELS_UPSTREAM);
          } },
    };
    return listed;
}

static constexpr int32_t MAX_STACKS = 4096; // a step through a grammar of so many takes a second

// What lets those who ask read files, run commands or reach other hosts through this one.
const char * const REFUSED[] = { "--tools",
                                 "--tools-runtime",
                                 "-ag",
                                 "--agent",
                                 "--path",
                                 "--ui-mcp-proxy",
                                 "--webui-mcp-proxy",
                                 "--mcp-servers-config",
                                 "--mcp-servers-json" };

// Takes pyskip's own flags out of the command line.
std::vector<std::string> read(int argc, char ** argv) {
    for (const flag & one : flags()) {
        if (const char * text = std::getenv(one.env)) {
            one.read(one.name, text);
        }
    }
    std::vector<std::string> rest;
    for (int i = 1; i < argc; ++i) {
        const std::string arg    = argv[i];
        const size_t      equals = arg.find('=');
        for (const char * refused : REFUSED) {
            if (arg == refused) {
                throw usage_error{ arg + " opens this machine to whoever asks: pyskip's server does not take it" };
            }
        }
        const flag * found = nullptr;
        for (const flag & one : flags()) {
            found = arg.substr(0, equals) == one.name ? &one : found;
        }
        if (!found) {
            rest.push_back(arg);
            continue;
        }
        if (equals == std::string::npos && i + 1 == argc) {
            throw usage_error{ arg + " has no value: give one" };
        }
        const std::string value = equals == std::string::npos ? argv[++i] : arg.substr(equals + 1);
        found->read(found->name, value);
        pyskip_set_env(found->env, value.c_str());
    }
    return rest;
}

bool has(const std::vector<std::string> & args, std::initializer_list<const char *> names) {
    for (const std::string & arg : args) {
        for (const char * name : names) {
            if (arg == name) {
                return true;
            }
        }
    }
    return false;
}

// Leaves the weights in the file's mapping: copies of them do not fit, and what is skipped need not be read.
void keep_mapped(std::vector<std::string> & args) {
    for (size_t i = 0; i < args.size(); ++i) {
        const bool is_mode = args[i] == "-lm" || args[i] == "--load-mode";
        const bool is_kept = is_mode && i + 1 < args.size() && (args[i + 1] == "mmap" || args[i + 1] == "auto");
        for (const char * loads : { "-lm", "--load-mode", "--repack", "--lora", "--lora-scaled" }) {
            if (args[i] == loads && !is_kept) {
                throw usage_error{ "--low-memory found " + args[i] + ", which loads the whole model: leave it out" };
            }
        }
    }
    if (!has(args, { "-nr", "--no-repack" })) {
        args.push_back("--no-repack");
    }
    if (!has(args, { "-lm", "--load-mode" })) {
        args.insert(args.end(), { "--load-mode", "mmap" });
    }
    if (!has(args, { "--warmup", "--no-warmup" })) {
        args.push_back("--no-warmup"); // it reads every weight
    }
}

// What libmtmd would crash on is refused before. Other names of the flag are upstream's to read.
void check_projector(const std::vector<std::string> & args) {
    for (size_t i = 0; i + 1 < args.size(); ++i) {
        char             line[4096 + 512];
        pyskip_gguf_info info{};
        if ((args[i] == "--mmproj" || args[i] == "-mm") &&
            pyskip_gguf_inspect(args[i + 1].c_str(), &info, line, sizeof(line)) != PYSKIP_STATUS_OK) {
            std::fprintf(stderr, "pyskip: %s\n", line);
            std::exit(1);
        }
    }
}

} // namespace

int main(int argc, char ** argv) {
    if (!std::getenv("PYSKIP_DEBUG")) {
        pyskip_exit_on_crash(pyskip_stderr());
    }
    for (const char * name :
         { "LLAMA_ARG_TOOLS", "LLAMA_ARG_AGENT", "LLAMA_ARG_UI_MCP_PROXY", "LLAMA_ARG_STATIC_PATH",
           "LLAMA_ARG_MCP_SERVERS_CONFIG", "LLAMA_ARG_MCP_SERVERS_JSON", "LLAMA_ARG_TOOLS_RUNTIME" }) {
        pyskip_set_env(name, nullptr);
    }
    std::vector<std::string> args;
    try {
        args = read(argc, argv);
        if (pyskip_server_settings().low_memory) {
            keep_mapped(args);
        }
        check_projector(args);
    } catch (const usage_error & e) {
        std::fprintf(stderr, "pyskip: %s\n", e.line.c_str());
        return 2;
    }
    const bool is_child = std::getenv("LLAMA_SERVER_ROUTER_PORT") != nullptr;
    const auto standard = [&](std::initializer_list<const char *> names, std::initializer_list<const char *> more) {
        if (!has(args, names)) {
            args.insert(args.begin(), more.begin(), more.end());
        }
    };
    standard({ "-lv", "--verbosity", "--log-verbosity", "-v", "--verbose", "--log-verbose" },
             { "-lv", is_child ? "2" : "1" });
    standard({ "--cors-origins" }, { "--cors-origins", "localhost" });
    if (!is_child) {
        standard({ "--port" }, { "--port", "8000" });
    }
    if (pyskip_is_retaken(argc, args.size() + 1)) {
        args.insert(args.begin(), { "-lv", "1" }); // one more, which the next one overrules
    }
    pyskip_grammar_limit(MAX_STACKS);
    std::vector<char *> pointers = { argv[0] };
    for (std::string & arg : args) {
        pointers.push_back(arg.data());
    }
    pointers.push_back(nullptr);
    return pyskip_shutdown_status(llama_server((int) pointers.size() - 1, pointers.data()));
}
