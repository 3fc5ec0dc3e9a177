// The page at / of `pyskip serve`: what is typed, the slider, the conversation, one or two answers to a prompt.

import { Answer } from "./answer.js";
import { ApiError, chat, models } from "./api.js";
import { lastStop, pointAt, rateAt, stopOf, stopOfSpec } from "./curve.js";

const $ = (id) => document.getElementById(id);
const dense = new Map(); // model -> tokens/s of the last dense answer here
const LEAST_TIMED = 8; // tokens of an answer whose rate counts as the model's

let known = []; // of pyskip/models
let messages = []; // the conversation, as the API takes it
let paced = false; // what is skipped is left to the server, which keeps a rate (--target-tps)
let running = null; // AbortController of what is being answered

const model = () => known.find(({ id }) => id === $("model").value);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const unbroken = (line) => line.replaceAll(" ", "\u00a0");
const perSecond = (rate) => `${rate.toFixed(1)} tokens/s`;

/** A line for screen readers, once things are done: never a token at a time. */
function say(line) {
  $("status").textContent = line;
}

function complain(error) {
  const line = error instanceof ApiError ? error.message : `the page failed: ${error.message}`;
  $("error").textContent = error.code === "context_length_exceeded" ? `${line} (New chat starts over)` : line;
  if (!(error instanceof ApiError)) console.error(error);
}

/** Ask for the API key. Null if none was given. */
function askKey(hadKey) {
  const dialog = $("key-dialog");
  $("key-why").textContent = hadKey ? "The server refused that key." : "The server wants an API key.";
  $("key").value = "";
  dialog.returnValue = "cancel"; // what Escape leaves
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? $("key").value : null), { once: true });
  });
}

/** What is asked for now: {skip, label}; skip is what the API takes, undefined for the server's own. */
function chosen() {
  const spec = $("policy").value.trim();
  if (spec) return { skip: spec, label: `skip ${spec}` };
  if (paced) return { label: `keeping ${model().target_tps} tokens/s` };
  const { profile } = model();
  const rate = profile ? rateAt(profile, Number($("skip").value)) : 0;
  return rate ? { skip: rate, label: `skip ${rate}` } : { skip: "off", label: "dense" };
}

function showPoint() {
  const { profile } = model();
  const spec = $("policy").value.trim();
  const rate = profile ? rateAt(profile, Number($("skip").value)) : 0;
  let line = "off: every block runs";
  if (spec) line = `the policy of the settings: ${spec}`;
  else if (paced) line = `the server keeps ${model().target_tps} tokens/s; the slider sets a rate instead`;
  else if (!profile) line = "off: there is no profile for this model; pyskip calibrate makes one";
  else if (rate) {
    const { pplRatio, idealSpeedup } = pointAt(profile, rate);
    const best = Number($("skip").value) === stopOf(profile, profile.recommended) ? " (recommended)" : "";
    line = `${rate}${best}: perplexity ${pplRatio.toFixed(3)} × dense, at best ${idealSpeedup.toFixed(2)} × as fast`;
  }
  $("point").textContent = line;
  $("skip").setAttribute("aria-valuetext", line);
  showRate();
}

/** The rate of an answer that comes or came, against the dense one that was measured here. */
function showRate(answer) {
  const now = answer?.tokensPerSecond ?? null;
  const base = dense.get(model().id);
  document.querySelector("#rate .now").textContent = now ? perSecond(now) : "";
  let against = "dense: not measured here yet (use off or Compare)";
  if (base) {
    const measured = `${base.toFixed(1)}, last dense answer here`;
    against = now && !answer.dense ? `${(now / base).toFixed(2)} × dense (${measured})` : `dense: ${measured}`;
  }
  document.querySelector("#rate .against").textContent = against;
}

/** The slider for the model that is chosen. */
function showModel() {
  const { profile, skip, target_tps: pace } = model();
  const slider = $("skip");
  const last = lastStop(profile);
  slider.max = last;
  slider.disabled = !last;
  paced = Boolean(pace);
  const stop = paced ? stopOf(profile, profile.recommended) : stopOfSpec(profile, skip);
  slider.value = stop ?? 0;
  $("policy").value = stop === null ? skip : "";
  $("end").textContent = last ? rateAt(profile, last) : "";
  const button = $("recommended");
  button.hidden = !last;
  if (last) {
    const best = stopOf(profile, profile.recommended);
    button.textContent = rateAt(profile, best);
    button.setAttribute("aria-label", `Set skip to ${rateAt(profile, best)}, the recommended rate`);
    button.style.left = `calc(8px + (100% - 16px) * ${best / last})`; // the middle of the slider's thumb
    button.onclick = () => {
      slider.value = best;
      $("policy").value = "";
      slider.dispatchEvent(new Event("input"));
    };
  }
  showPoint();
}

function setBusy(busy) {
  const had = document.activeElement;
  for (const id of ["send", "compare"]) $(id).hidden = busy;
  $("stop").hidden = !busy;
  for (const id of ["model", "new"]) $(id).disabled = busy;
  if (busy && (had === $("send") || had === $("compare"))) $("stop").focus();
  if (!busy && (had === $("stop") || had === document.body)) $("prompt").focus();
}

/** Keep the end of the page in sight if it was in sight. */
function keepEnd(change) {
  const page = document.scrollingElement;
  const atEnd = page.scrollTop + page.clientHeight >= page.scrollHeight - 40;
  change();
  if (atEnd) page.scrollTop = page.scrollHeight;
}

/** One answer to the conversation, into `place`. Throws if the server refuses; what had come stays. */
async function answer(place, { skip, label }, seed) {
  const one = new Answer(model(), label, (change) => {
    keepEnd(change);
    showRate(one);
  });
  one.dense = skip === "off";
  keepEnd(() => place.append(one.node));
  const system = $("system").value.trim();
  const body = {
    model: one.model.id, skip, seed,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    max_tokens: $("max-tokens").valueAsNumber,
  };
  if ($("temperature").value) body.temperature = $("temperature").valueAsNumber;
  let end = "";
  try {
    for await (const chunk of chat(body, running.signal, askKey)) one.add(chunk);
  } catch (error) {
    end = error.name === "AbortError" ? "stopped" : "broken off";
    if (end !== "stopped") throw error;
  } finally {
    const rate = one.tokensPerSecond;
    if (one.dense && rate && one.tokens.length >= LEAST_TIMED) dense.set(one.model.id, rate);
    const base = dense.get(one.model.id);
    const figures = [`${one.tokens.length} tokens`];
    if (!one.dense) figures.push(`${percent(one.skipRate)} of FFN blocks skipped`);
    if (rate) figures.push(perSecond(rate));
    if (rate && base && !one.dense) figures.push(`${(rate / base).toFixed(2)} × dense`);
    if (end) figures.push(end);
    if (one.tokens.length || !end || end === "stopped") one.finish(figures.map(unbroken).join(" · "));
    else one.node.remove();
  }
  one.stopped = end === "stopped";
  return one;
}

/** How far two answers agree, in words. */
function agreement(a, b) {
  if (a === b) return "Both answers are the same.";
  let n = 0;
  while (n < Math.min(a.length, b.length) && a[n] === b[n]) n += 1;
  return n ? `The answers are the same for the first ${n} characters.` : "The answers differ from the first character on.";
}

/** Answer what was typed: once as chosen, or dense and as chosen. */
async function ask(both) {
  const prompt = $("prompt").value.trim();
  if (running || !prompt || !model()) return;
  $("error").textContent = "";
  if (both && chosen().skip === "off") {
    complain(new ApiError("there is nothing to compare while Skip is off: move the slider"));
    return;
  }
  for (const id of ["max-tokens", "temperature"]) {
    if (!$(id).checkValidity()) {
      document.querySelector(".more").open = true;
      $(id).reportValidity();
      return;
    }
  }
  const turn = document.createElement("section");
  turn.className = "turn";
  const question = document.createElement("h2");
  question.textContent = prompt;
  const place = document.createElement("div");
  place.className = both ? "answers pair" : "answers";
  turn.append(question, place);
  for (const map of document.querySelectorAll(".map[open]")) map.open = false; // those of earlier answers
  $("intro").hidden = true;
  $("talk").append(turn);
  document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
  messages.push({ role: "user", content: prompt });
  $("prompt").value = "";
  running = new AbortController();
  setBusy(true);
  say("Answering.");
  const answers = [];
  try {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1; // the same for both
    const ways = both ? [{ skip: "off", label: "dense" }, chosen()] : [chosen()];
    for (const way of ways) {
      answers.push(await answer(place, way, seed));
      if (answers.at(-1).stopped) break;
    }
    if (answers.length === 2) {
      const note = document.createElement("p");
      note.className = "note";
      note.textContent = `${agreement(answers[0].text, answers[1].text)} The conversation goes on from the skipped one.`;
      keepEnd(() => turn.append(note));
    }
    say(answers.map((one) => `${one.label}: ${one.text} ${one.figures.textContent}.`).join(" "));
  } catch (error) {
    complain(error);
    if (!answers.length) $("prompt").value ||= prompt;
  } finally {
    const last = answers.at(-1)?.text;
    if (last) messages.push({ role: "assistant", content: last });
    else messages.pop();
    if (!place.children.length) turn.remove();
    running = null;
    setBusy(false);
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(false);
});
$("compare").addEventListener("click", () => ask(true));
$("stop").addEventListener("click", () => running?.abort());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask(event.ctrlKey || event.metaKey);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("key-dialog").open) running?.abort();
});
$("new").addEventListener("click", () => {
  messages = [];
  for (const turn of document.querySelectorAll(".turn")) turn.remove();
  $("intro").hidden = false;
  $("error").textContent = "";
  $("prompt").focus();
  say("New chat.");
});
$("model").addEventListener("change", showModel);
$("policy").addEventListener("input", showPoint);
$("skip").addEventListener("input", () => {
  paced = false;
  showPoint();
});

try {
  known = await models(askKey);
  $("model").append(...known.map(({ id }) => new Option(id, id)));
  showModel();
} catch (error) {
  complain(error);
}
