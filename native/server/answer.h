// What an answer says of skipping: usage.skip_rate, timings.skip_rate and skip_trace, in each of upstream's formats.

#pragma once

#include <string>

class common_json;
struct server_task_result;

// What a model writes need not be UTF-8, and upstream's parser of answers stops at what is not: such bytes become U+FFFD. The
// beginning of a character at the end of the text is left.
void pyskip_answer_mend(std::string & text);

// `answer` is what upstream made of the result: an object, a list of chunks or of events, or nothing.
void pyskip_answer_tell(common_json & answer, const server_task_result & result);
