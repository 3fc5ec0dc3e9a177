// One answer on the page: its text with each token shaded, a line of figures, the map.

import { blocks, element } from "./markdown.js";
import { SkipMap } from "./map.js";

const EVERY = 100; // ms between two paintings of an answer that is coming: the model needs the processor, too
const BOUNDS = [0, 0.1, 0.2, 0.3, 0.4, 0.6]; // shares of skipped blocks: the legend in index.html

/** s0 to s6, the shade of a token. */
export function shade(skipped, nLayer) {
  const share = skipped.length / nLayer;
  const level = BOUNDS.findIndex((bound) => share <= bound + 1e-9);
  return `s${level < 0 ? BOUNDS.length : level}`;
}

export class Answer {
  /** label: how it was made, for people ("dense", "skip 0.23"). within(change): makes every change of the page. */
  constructor(model, label, within = (change) => change()) {
    Object.assign(this, { model, label, within, text: "", tokens: [], ends: [], drawn: [], timer: 0 });
    this.usage = this.map = null;
    this.firstAt = this.lastAt = 0; // ms, when the first and the last tokens came
    this.node = document.createElement("article");
    this.node.className = "answer";
    this.node.setAttribute("aria-label", `Answer, ${label}`);
    this.body = document.createElement("div");
    this.body.className = "text";
    this.figures = document.createElement("p");
    this.figures.className = "figures";
    const head = document.createElement("h3");
    head.textContent = label;
    this.node.append(head, this.body, this.figures);
    const pointed = (event) => {
      const token = event.target.closest("[data-i]");
      if (token && this.map) this.map.moveTo(Number(token.dataset.i));
    };
    this.body.addEventListener("pointerover", pointed);
    this.body.addEventListener("click", pointed);
  }

  /** A chunk of the API. */
  add(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const piece = chunk.choices?.[0]?.delta?.content ?? "";
    const trace = chunk.skip_trace ?? (piece ? [{ text: piece, skipped: [] }] : []);
    if (!piece && !trace.length) return;
    this.text += piece;
    for (const { text, skipped } of trace) {
      this.ends.push((this.ends.at(-1) ?? 0) + text.length);
      this.tokens.push({ text, skipped });
      if (skipped.length && !this.map) this.#openMap();
    }
    this.lastAt = performance.now();
    if (!this.firstAt) {
      this.firstAt = this.lastAt;
      this.firstCount = this.tokens.length; // of which it is not known how long they took
    }
    this.timer ||= setTimeout(() => this.within(() => this.paint()), EVERY);
  }

  /** Tokens a second: the server's figure, or as seen here while it is coming. Null if there is none yet. */
  get tokensPerSecond() {
    if (this.usage?.tokens_per_second) return this.usage.tokens_per_second;
    const seconds = (this.lastAt - this.firstAt) / 1000;
    return seconds > 0.2 ? (this.tokens.length - this.firstCount) / seconds : null;
  }

  /** Share of FFN blocks skipped. */
  get skipRate() {
    if (this.usage && Number.isFinite(this.usage.skip_rate)) return this.usage.skip_rate;
    const skipped = this.tokens.reduce((sum, token) => sum + token.skipped.length, 0);
    return skipped / Math.max(this.tokens.length * this.model.n_layer, 1);
  }

  /** Bring the page up to what has come. */
  paint() {
    clearTimeout(this.timer);
    this.timer = 0;
    const found = blocks(this.text);
    const key = (block) => `${block.kind} ${block.start} ${block.end} ${block.to}`;
    let same = 0;
    while (same < found.length && same < this.drawn.length && key(found[same]) === this.drawn[same]) same += 1;
    while (this.body.childNodes.length > same) this.body.lastChild.remove();
    const leaf = (parent, start, end) => this.#leaf(parent, start, end);
    for (const block of found.slice(same)) this.body.append(element(this.text, block, leaf));
    this.drawn = found.map(key);
    this.map?.update(this.tokens);
  }

  /** It is whole, or was stopped. */
  finish(figures) {
    this.within(() => {
      this.paint();
      this.figures.textContent = figures;
      this.map?.finish();
      this.node.classList.add("whole");
    });
  }

  #openMap() {
    this.map = new SkipMap(this.model, this.label, (index) => this.#point(index));
    this.node.append(this.map.node);
  }

  #point(index) {
    for (const old of this.body.querySelectorAll(".at")) old.classList.remove("at");
    for (const now of this.body.querySelectorAll(`[data-i="${index}"]`)) now.classList.add("at");
  }

  /** Append text[start:end] with a span for each token in it. */
  #leaf(parent, start, end) {
    let low = 0;
    for (let high = this.ends.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > start) high = middle;
      else low = middle + 1;
    }
    for (let i = low; start < end; i += 1) {
      const stop = i < this.ends.length ? Math.min(this.ends[i], end) : end;
      if (stop <= start) continue; // a token that is part of a character
      const span = document.createElement("span");
      if (i < this.tokens.length) {
        span.className = shade(this.tokens[i].skipped, this.model.n_layer);
        span.dataset.i = i;
      }
      span.textContent = this.text.slice(start, stop);
      parent.append(span);
      start = stop;
    }
  }
}
