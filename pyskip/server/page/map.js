// The map of an answer: layers upwards, tokens to the right, a cell for each FFN block. With a cursor on one token, a
// line that says what was skipped for it, and a table by layer that says the same in words.

const LEAST = 3, MOST = 14; // width of a cell, CSS pixels
const TALLEST = 168; // of all layers
const AXIS = 18; // height of the numbers below
const WIDEST = 16000; // device pixels of a canvas

/** 3, 5-8 for [3, 5, 6, 7, 8]. */
export function ranges(numbers) {
  const runs = [];
  for (const n of numbers) {
    if (runs.length && n === runs.at(-1)[1] + 1) runs.at(-1)[1] = n;
    else runs.push([n, n]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export class SkipMap {
  /** model: of pyskip/models. title: which answer this is. onMove(i): the cursor is on token i now, null for none. */
  constructor(model, title, onMove) {
    Object.assign(this, { model, title, onMove, tokens: [], cursor: null });
    this.axis = make("canvas", { "aria-hidden": "true" });
    this.canvas = make("canvas", { role: "img" });
    this.scroller = make("div", { class: "scroller" }, this.canvas);
    this.slider = make("input", { type: "range", min: "0", max: "0", value: "0", step: "1" });
    this.readout = make("p", { class: "readout" });
    this.table = make("details", { class: "by-layer" }, make("summary", {}, "By layer, as a table"));
    this.table.addEventListener("toggle", () => this.#fillTable());
    this.node = make(
      "details", { class: "map", open: "" },
      make("summary", {}, "Skipped blocks, layer by token"),
      document.querySelector("#legend").content.cloneNode(true),
      make("div", { class: "grid" }, this.axis, this.scroller),
      make("label", { class: "cursor" }, make("span", {}, "Token"), this.slider), this.readout, this.table,
    );
    this.node.addEventListener("toggle", () => this.draw());
    this.slider.addEventListener("input", () => this.moveTo(Number(this.slider.value)));
    const follow = (event) => this.moveTo(Math.floor(event.offsetX / this.cell));
    this.canvas.addEventListener("pointermove", follow);
    this.canvas.addEventListener("pointerdown", follow);
    new ResizeObserver(() => this.draw()).observe(this.scroller);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** tokens: [{text, skipped}] so far. */
  update(tokens) {
    this.tokens = tokens;
    this.slider.max = Math.max(tokens.length - 1, 0);
    if (this.cursor === null) this.#tell();
    const { scrollLeft, clientWidth, scrollWidth } = this.scroller;
    const atEnd = scrollLeft + clientWidth >= scrollWidth - 1;
    this.draw();
    if (atEnd) this.scroller.scrollLeft = this.scroller.scrollWidth;
  }

  /** The answer is whole: say in words what the picture shows. */
  finish() {
    const rates = this.#perLayer();
    const most = rates.indexOf(Math.max(...rates));
    this.canvas.setAttribute("aria-label",
      `Map of skipped FFN blocks, ${this.title}: ${this.tokens.length} tokens by ${this.model.n_layer} layers. ` +
      `Skipped most often: layer ${most}, for ${Math.round(100 * rates[most])} % of tokens. ` +
      "The table below has every layer; the token slider tells about each token.");
    this.#fillTable();
    this.draw();
  }

  moveTo(index) {
    if (!this.tokens.length) return;
    this.cursor = Math.min(Math.max(index, 0), this.tokens.length - 1);
    this.slider.value = this.cursor;
    this.#tell();
    this.draw();
    const { scrollLeft, clientWidth } = this.scroller;
    const x = this.cursor * this.cell - scrollLeft;
    if (x < 0 || x > clientWidth - this.cell) this.scroller.scrollLeft += x - clientWidth / 2;
    this.onMove(this.cursor);
  }

  #tell() {
    const index = this.cursor ?? 0;
    if (index >= this.tokens.length) return;
    const { text, skipped } = this.tokens[index];
    const what = skipped.length ? `: ${ranges(skipped)}` : "";
    const line = `Token ${index} of ${this.tokens.length}, “${text.replace(/\n/g, "⏎")}”: ` +
      `${skipped.length} of ${this.model.n_layer} blocks skipped${what}`;
    this.slider.setAttribute("aria-valuetext", line);
    this.readout.textContent = line;
  }

  #perLayer() {
    const counts = new Array(this.model.n_layer).fill(0);
    for (const { skipped } of this.tokens) for (const layer of skipped) if (layer in counts) counts[layer] += 1;
    return counts.map((count) => count / Math.max(this.tokens.length, 1));
  }

  #fillTable() {
    if (!this.table.open) return;
    const can = new Set(this.model.skippable);
    const rows = this.#perLayer().map((rate, layer) => make("tr", {}, make("th", { scope: "row" }, `${layer}`),
      make("td", {}, can.has(layer) ? `${(100 * rate).toFixed(1)} %` : "cannot skip")));
    const head = make("tr", {}, make("th", { scope: "col" }, "Layer"), make("th", { scope: "col" }, "Tokens skipped"));
    const table = make("table", {}, make("caption", { class: "unseen" }, `Skipped by layer, ${this.title}`),
      make("thead", {}, head), make("tbody", {}, ...rows));
    this.table.querySelector("table")?.remove();
    this.table.append(table);
  }

  /** Size the canvas for its place and paint it. */
  draw() {
    if (!this.node.open || !this.node.isConnected) return;
    const n = this.model.n_layer;
    const room = this.scroller.clientWidth;
    const columns = Math.max(32 * Math.ceil(this.tokens.length / 32), 64); // so that it is not resized by each token
    this.cell = Math.min(Math.max(Math.floor(room / columns), LEAST), MOST);
    const row = Math.min(Math.max(Math.floor(TALLEST / n), LEAST), MOST);
    const width = Math.max(this.cell * this.tokens.length, this.cell);
    const style = getComputedStyle(this.node);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    const font = `11px ${style.fontFamily}`;

    let paint = this.#context(this.axis, 46, n * row + AXIS, font);
    paint.fillStyle = colour("quiet");
    paint.textAlign = "right";
    const every = Math.max(Math.ceil(14 / row), Math.ceil(n / 4));
    for (let layer = 0; layer < n; layer += every) paint.fillText(`${layer}`, 42, (n - layer - 0.5) * row + 4);
    paint.fillText("token", 42, n * row + 13);
    paint.save();
    paint.translate(11, (n * row) / 2);
    paint.rotate(-Math.PI / 2);
    paint.textAlign = "center";
    paint.fillText("layer", 0, 0);
    paint.restore();

    paint = this.#context(this.canvas, Math.max(width, Math.min(room, width + 24)), n * row + AXIS, font);
    const can = new Set(this.model.skippable);
    const gap = this.cell > 4 ? 1 : 0;
    for (let layer = 0; layer < n; layer += 1) {
      paint.fillStyle = colour(can.has(layer) ? "ran" : "never");
      paint.fillRect(0, (n - layer - 1) * row, width - gap, row - (row > 4 ? 1 : 0));
    }
    paint.fillStyle = colour("skipped");
    this.tokens.forEach(({ skipped }, i) => {
      for (const layer of skipped) {
        paint.fillRect(i * this.cell, (n - layer - 1) * row, this.cell - gap, row - (row > 4 ? 1 : 0));
      }
    });
    paint.fillStyle = colour("quiet");
    const step = [10, 20, 50, 100, 200, 500, 1000].find((s) => s * this.cell >= 40) ?? 2000;
    for (let i = 0; i < this.tokens.length; i += step) paint.fillText(`${i}`, i * this.cell, n * row + 13);
    if (this.cursor !== null) {
      paint.strokeStyle = colour("ink");
      paint.strokeRect(this.cursor * this.cell - 0.5, 0.5, this.cell, n * row - 1);
    }
  }

  #context(canvas, width, height, font) {
    const scale = Math.min(devicePixelRatio || 1, WIDEST / width);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const paint = canvas.getContext("2d");
    paint.scale(scale, scale);
    paint.font = font;
    return paint;
  }
}
