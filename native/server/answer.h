// What an answer says of skipping: usage.skip_rate, timings.skip_rate and skip_trace, in each of upstream's formats.

#pragma once

class common_json;
struct server_task_result;

// `answer` is what upstream made of the result: an object, a list of chunks or of events, or nothing.
void pyskip_answer_tell(common_json & answer, const server_task_result & result);
