// A little Markdown, as DOM nodes: paragraphs, headings, lists, fenced code, `code`, **strong**, *emphasis*.
//
// The text is a model's: it only ever becomes text nodes. No HTML, links or images. Every node of text goes through
// leaf(parent, start, end), which appends text[start:end], so that the caller can mark the tokens in it.

const FENCE = /^ {0,3}(```|~~~)/;
const ITEM = /^( *)(?:[-*+]|(\d{1,9})[.)])(?: +|$)/;
const HEADING = /^(#{1,6}) +/;

/** The blocks of a text: [{kind, start, end, ...}], offsets into the text. */
export function blocks(text) {
  const found = [];
  let open = null;
  for (let start = 0; start < text.length; ) {
    let end = text.indexOf("\n", start);
    if (end < 0) end = text.length;
    const line = text.slice(start, end);
    const fence = FENCE.exec(line);
    if (open?.kind === "code") {
      open.end = end;
      if (fence && fence[1] === open.fence && line.trim() === open.fence) {
        open.to = start;
        open = null;
      } else {
        open.to = end;
      }
    } else if (fence) {
      const from = Math.min(end + 1, text.length);
      found.push((open = { kind: "code", fence: fence[1], start, end, from, to: from }));
    } else if (!line.trim()) {
      open = open?.kind === "list" ? open : null; // items may stand apart
      if (open) open.apart = true;
    } else if (ITEM.test(line)) {
      const [mark, indent, number] = ITEM.exec(line);
      if (open?.kind !== "list" || open.ordered !== (number !== undefined)) {
        found.push((open = { kind: "list", ordered: number !== undefined, start, end, items: [] }));
      }
      open.items.push({ start: start + mark.length, end, number, depth: Math.min(indent.length >> 1, 3) });
      open.end = end;
      open.apart = false;
    } else if (HEADING.test(line)) {
      found.push({ kind: "heading", start, end, from: start + HEADING.exec(line)[0].length });
      open = null;
    } else if (open && !(open.kind === "list" && open.apart && !line.startsWith(" "))) {
      open.end = end;
      if (open.kind === "list") open.items.at(-1).end = end;
    } else {
      found.push((open = { kind: "paragraph", start, end }));
    }
    start = end + 1;
  }
  return found;
}

/** Where what was opened before `first` closes, -1 if it does not before `end`. */
function closing(text, mark, first, end) {
  for (let at = first + 1; at + mark.length <= end; at += 1) {
    at = text.indexOf(mark, at);
    if (at < 0 || at + mark.length > end) return -1;
    const lone = mark !== "*" || (text[at + 1] !== "*" && text[at - 1] !== "*");
    if (lone && (mark === "`" || /\S/.test(text[at - 1]))) return at;
  }
  return -1;
}

/** Append what text[start:end] says within a line, by leaf(parent, start, end). */
function inline(parent, text, start, end, leaf) {
  const hopeless = new Set(); // marks that nothing ahead closes: keeps this linear
  let from = start;
  for (let at = start; at < end; ) {
    const mark = text[at] === "`" ? "`" : text.startsWith("**", at) ? "**" : text[at] === "*" ? "*" : "";
    const first = at + (mark.length || 1);
    if (!mark || first >= end || hopeless.has(mark) || (mark !== "`" && /\s/.test(text[first]))) {
      at = first;
      continue;
    }
    const last = closing(text, mark, first, end);
    if (last < 0) {
      hopeless.add(mark);
      at = first;
      continue;
    }
    if (from < at) leaf(parent, from, at);
    const node = document.createElement({ "**": "strong", "*": "em", "`": "code" }[mark]);
    parent.append(node);
    if (mark === "`") leaf(node, first, last);
    else inline(node, text, first, last, leaf);
    at = from = last + mark.length;
  }
  if (from < end) leaf(parent, from, end);
}

/** The element of one block. */
export function element(text, block, leaf) {
  if (block.kind === "code") {
    const pre = document.createElement("pre");
    const code = document.createElement("code");
    pre.tabIndex = 0; // scrolls by keyboard
    if (block.from < block.to) leaf(code, block.from, block.to);
    pre.append(code);
    return pre;
  }
  if (block.kind === "list") {
    const list = document.createElement(block.ordered ? "ol" : "ul");
    for (const item of block.items) {
      const row = document.createElement("li");
      if (item.number !== undefined) row.value = Number(item.number);
      if (item.depth) row.classList.add(`depth${item.depth}`);
      inline(row, text, item.start, item.end, leaf);
      list.append(row);
    }
    return list;
  }
  const node = document.createElement("p");
  if (block.kind === "heading") node.classList.add("heading");
  inline(node, text, block.from ?? block.start, block.end, leaf);
  return node;
}
