// What systems do differently, for the rest of the server.

#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

// The file of this program, empty if the system does not tell.
std::filesystem::path pyskip_program_path();

// For this process and those that it starts; null takes the variable away.
void pyskip_set_env(const char * name, const char * value);

// stderr, as pyskip_exit_on_crash() takes it.
int32_t pyskip_stderr();

// Whether upstream would take the process's own command line for one of this length, and so with pyskip's flags in it.
bool pyskip_is_retaken(int n_own, size_t n_args);
