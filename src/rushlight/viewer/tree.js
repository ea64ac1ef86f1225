// Draws the tree in #data. Text from files is inserted by textContent or setAttribute, never as HTML.
const ROW_PX = matchMedia("(hover: none)").matches ? 40 : 28; // --row in tree.css
const INDENT_PX = 18;
const OVERSCAN = 12; // rows rendered outside the view, so that fast scrolling shows no gap
const OPEN_AT_FIRST = 400; // a tree with more rows starts collapsed to its outermost modules
const STATS = ["min", "max", "mean", "std"];
const MARKS = { tied: "tied: the same weights as another tensor, counted there", buffer: "buffer: a constant, not counted" };

// Text

const count = (n) => n.toLocaleString("en-US");
const counted = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

// Rounds half to even, as Python does.
const TENTHS = { minimumFractionDigits: 1, maximumFractionDigits: 1, roundingMode: "halfEven" };
const tenths = (n) => n.toLocaleString("en-US", TENTHS);

function bytes(n) {
  if (n < 1024) return `${n} B`;
  for (const unit of ["KiB", "MiB", "GiB"]) {
    n /= 1024;
    if (n < 1023.95) return `${tenths(n)} ${unit}`;
  }
  return `${tenths(n / 1024)} TiB`;
}

function percent(share) {
  const value = 100 * share;
  if (value === 0) return "–";
  return value < 0.01 ? "< 0.01%" : `${value.toFixed(value < 10 ? 2 : 1)}%`;
}

function figure(value) {
  if (value === null) return "–";
  if (value === 0 || Number.isInteger(value) && Math.abs(value) < 1e6) return count(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

// The tree: sets the parent, the full name, and the search text of each node

const leaves = [];
const opened = new Set();

(function prepare(node) {
  for (const child of node.entries) {
    child.parent = node;
    child.name = node === data ? child.label : `${node.name}.${child.label}`;
    if (child.entries) {
      prepare(child);
    } else {
      child.key = child.name.toLowerCase();
      leaves.push(child);
    }
  }
})(data);

const hues = new Map(data.dtypes.map(([dtype], i) => [dtype, `var(--hue-${(i % 5) + 1})`]));

// Visible rows: `rows` has one object per line, in order

let rows = [];
let active = 0;
let folding = !data.hasStats; // equal blocks have equal shapes, not equal values
let matches = null; // during a search: the matching nodes and their ancestors
let closedInSearch = new Set();
let highlights = [];

function isOpen(node) {
  return matches ? !closedInSearch.has(node) : opened.has(node);
}

function rowsBelow(parent, level, copies, into) {
  const siblings = [];
  let at = 0;
  for (const run of parent.runs) {
    const together = folding && !matches ? run : 1;
    for (const end = at + run; at < end; at += together) {
      const node = parent.entries[at];
      if (matches && !matches.has(node)) continue;
      siblings.push({ node, last: parent.entries[at + together - 1], times: together, copies, level });
    }
  }
  siblings.forEach((row, i) => {
    row.position = i + 1;
    row.siblings = siblings.length;
    into.push(row);
    if (row.node.entries && isOpen(row.node)) rowsBelow(row.node, level + 1, copies * row.times, into);
  });
  return into;
}

function refresh(keep = rows[active]?.node) {
  rows = rowsBelow(data, 1, 1, []);
  // Keep the selected row; if it is hidden now, select its nearest visible ancestor.
  for (active = -1; keep && active < 0; keep = keep.parent) active = rows.findIndex((row) => row.node === keep);
  active = Math.max(active, 0);
  $("tree").style.height = `${rows.length * ROW_PX}px`;
  $("nothing").hidden = rows.length > 0;
  draw();
}

// Drawing: only rows in view exist as elements

function draw() {
  const first = Math.max(0, Math.floor($("scroller").scrollTop / ROW_PX) - OVERSCAN);
  const inView = Math.ceil($("scroller").clientHeight / ROW_PX) + 2 * OVERSCAN;
  const drawn = rows.slice(first, first + inView).map((row, i) => drawRow(row, first + i));
  $("tree").replaceChildren(...drawn);
  const current = document.getElementById(`row-${active}`);
  if (current) $("tree").setAttribute("aria-activedescendant", current.id);
  else $("tree").removeAttribute("aria-activedescendant");
  drawDetail(rows[active]);
}

function drawRow(row, index) {
  const { node, last, times, copies, level } = row;
  const line = element("div", `row ${node.entries ? "module" : "leaf"}${index === active ? " active" : ""}`);
  line.id = `row-${index}`;
  line.style.top = `${index * ROW_PX}px`;
  line.setAttribute("role", "treeitem");
  line.setAttribute("aria-level", level);
  line.setAttribute("aria-posinset", row.position);
  line.setAttribute("aria-setsize", row.siblings);
  line.setAttribute("aria-selected", index === active);
  if (node.entries) line.setAttribute("aria-expanded", isOpen(node));

  const name = element("span", "name");
  const guides = element("span", "guides");
  guides.style.width = `${(level - 1) * INDENT_PX}px`;
  const label = element("span", "label");
  label.append(...highlighted(node.label));
  if (times > 1) label.append(` … ${last.label}`);
  label.title = node.name;
  name.append(guides, element("span", "caret"), label);
  if (times > 1) name.append(element("span", "times", `×${times}`));

  const dtype = element("span", "dtype", node.dtype ?? "");
  if (node.dtype) dtype.style.setProperty("--hue", hues.get(node.dtype));
  const each = times > 1 ? `${times} × ` : "";
  const shape = element("span", "shape", node.entries ? each && each + count(node.parameters) : each + node.shape);
  const parameters = element("span", `number${node.mark ? " marked" : ""}`, node.mark ?? count(times * node.parameters));
  const share = (copies * times * node.parameters) / Math.max(1, data.parameters);
  line.append(name, dtype, shape, parameters, element("span", "number bytes", bytes(times * node.bytes)), bar(share));
  if (data.hasStats) line.append(...statCells(node, times * copies > 1));
  return line;
}

function bar(share) {
  const cell = element("span", "share");
  const track = element("i");
  const filled = element("b");
  filled.style.width = `${100 * share}%`;
  if (share > 0) track.append(filled);
  cell.append(track, element("span", "", percent(share)));
  return cell;
}

function statCells(node, isFolded) {
  const stats = isFolded ? undefined : node.stats;
  const cells = STATS.map((key) => element("span", "number stat", stats ? figure(stats[key]) : ""));
  if (node.dtype && !isFolded && !stats) cells[0].textContent = "not read";
  const bad = stats ? stats.n_nan + stats.n_inf : 0;
  return [...cells, element("span", `number stat${bad ? " bad" : ""}`, stats ? count(bad) : "")];
}

function highlighted(text) {
  const low = text.toLowerCase();
  const at = highlights.map((word) => [low.indexOf(word), word.length]).filter(([start]) => start >= 0);
  if (!at.length || low.length !== text.length) return [text];
  const [start, length] = at[0];
  return [text.slice(0, start), element("mark", "", text.slice(start, start + length)), text.slice(start + length)];
}

function drawDetail(row) {
  const facts = [];
  if (row) {
    const { node, last, times } = row;
    facts.push(element("strong", "", times > 1 ? `${node.name} … ${last.name}` : node.name));
    const each = times > 1 ? `${times} × ` : "";
    if (node.dtype) facts.push(`${each}${node.dtype} ${node.shape}`);
    facts.push(node.mark ? MARKS[node.mark] : each + counted(node.parameters, "parameter"), each + bytes(node.bytes));
    if (data.hasStats && node.dtype && !node.stats) facts.push("values not read");
    if (node.stats && times * row.copies === 1) {
      facts.push(...STATS.map((key) => `${key} ${figure(node.stats[key])}`));
      facts.push(`${count(node.stats.n_nan)} NaN, ${count(node.stats.n_inf)} Inf`);
    }
  }
  $("detail").replaceChildren(...facts.flatMap((fact, i) => (i ? [" · ", fact] : [fact])));
}

// Moving and folding

function select(index) {
  active = Math.min(Math.max(index, 0), rows.length - 1);
  const scroller = $("scroller");
  const head = $("heads").offsetHeight;
  const top = active * ROW_PX;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  else if (top + ROW_PX + head > scroller.scrollTop + scroller.clientHeight)
    scroller.scrollTop = top + ROW_PX + head - scroller.clientHeight;
  draw();
}

function setOpen(node, open) {
  if (matches) open ? closedInSearch.delete(node) : closedInSearch.add(node);
  else open ? opened.add(node) : opened.delete(node);
}

function toggle(row) {
  if (!row?.node.entries) return;
  setOpen(row.node, !isOpen(row.node));
  refresh(row.node);
}

function setAll(open) {
  (function walk(node) {
    for (const child of node.entries) {
      if (!child.entries) continue;
      setOpen(child, open);
      walk(child);
    }
  })(data);
  refresh();
  select(active);
}

const pageRows = () => Math.max(1, Math.floor(($("scroller").clientHeight - ROW_PX) / ROW_PX) - 1);

const KEYS = {
  ArrowDown: () => select(active + 1),
  ArrowUp: () => select(active - 1),
  PageDown: () => select(active + pageRows()),
  PageUp: () => select(active - pageRows()),
  Home: () => select(0),
  End: () => select(rows.length - 1),
  Enter: () => toggle(rows[active]),
  " ": () => toggle(rows[active]),
  ArrowRight: () => {
    const { node } = rows[active];
    if (!node.entries) return;
    if (isOpen(node)) select(active + 1);
    else toggle(rows[active]);
  },
  ArrowLeft: () => {
    const { node, level } = rows[active];
    if (node.entries && isOpen(node)) toggle(rows[active]);
    else if (level > 1) select(rows.findLastIndex((row, i) => i < active && row.level < level));
  },
  "*": () => {
    for (const sibling of rows[active].node.parent.entries) if (sibling.entries) setOpen(sibling, true);
    refresh();
  },
};

$("tree").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !rows.length || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

$("tree").addEventListener("click", (event) => {
  const line = event.target.closest(".row");
  if (!line || String(getSelection())) return; // the user is selecting text to copy
  select(Number(line.id.slice("row-".length)));
  toggle(rows[active]);
});

// Search: every word must match the name, or the dtype, shape or mark that it filters by

const FILTERS = {
  dtype: (leaf, value) => leaf.dtype.toLowerCase() === value,
  shape: (leaf, value) => leaf.shape.match(/\d+/g)?.includes(value) ?? false,
  mark: (leaf, value) => leaf.mark === value,
};

function search() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const tests = [];
  highlights = [];
  for (const word of words) {
    const [, filter, value] = word.match(/^(dtype|shape|mark):(.+)$/) ?? [];
    if (filter) {
      tests.push((leaf) => FILTERS[filter](leaf, value));
    } else {
      tests.push((leaf) => leaf.key.includes(word));
      highlights.push(word, ...word.split(".").filter((part) => part.length > 1));
    }
  }
  highlights.sort((a, b) => b.length - a.length);
  const keep = rows[active]?.node;
  closedInSearch = new Set();
  matches = words.length ? new Set() : null;
  let found = 0;
  if (matches) {
    for (const leaf of leaves) {
      if (!tests.every((test) => test(leaf))) continue;
      found += 1;
      for (let node = leaf; node !== data && !matches.has(node); node = node.parent) matches.add(node);
    }
  }
  $("found").textContent = matches ? `${count(found)} of ${counted(leaves.length, "tensor")}` : "";
  for (const chip of $("dtypes").children) chip.setAttribute("aria-pressed", words.includes(chip.dataset.word));
  $("scroller").scrollTop = 0;
  if (matches) {
    refresh();
  } else {
    refresh(keep);
    select(active);
  }
}

$("search").addEventListener("input", search);

function clearSearch() {
  $("search").value = "";
  search();
  $("tree").focus({ preventScroll: true });
}

document.addEventListener("keydown", (event) => {
  const typing = event.target === $("search");
  if (event.key === "Escape") clearSearch();
  else if (typing && (event.key === "Enter" || event.key === "ArrowDown")) $("tree").focus({ preventScroll: true });
  else if (!typing && event.key === "/" && !event.ctrlKey && !event.metaKey) $("search").select();
  else return;
  event.preventDefault();
});

// The header and its buttons

$("fold").addEventListener("click", () => {
  folding = !folding;
  $("fold").setAttribute("aria-pressed", folding);
  refresh();
  select(active);
});
$("expand").addEventListener("click", () => setAll(true));
$("collapse").addEventListener("click", () => setAll(false));

function drawHeader() {
  $("heading").textContent = data.source;
  const facts = [
    ["parameters", count(data.parameters)],
    ["tensors", count(data.nTensors)],
    ["size", bytes(data.bytes)],
    [data.files.length === 1 ? "file" : "files", data.files.length === 1 ? data.files[0] : count(data.files.length)],
  ];
  if (data.architecture) facts.unshift(["architecture", data.architecture]);
  showFacts(facts);
  for (const [dtype, size] of data.dtypes) {
    const word = `dtype:${dtype.toLowerCase()}`;
    const chip = element("button", "", `${dtype}  ${bytes(size)}`);
    chip.type = "button";
    chip.dataset.word = word;
    chip.setAttribute("aria-pressed", "false");
    chip.style.setProperty("--share", Math.max(size / Math.max(1, data.bytes), 0.001));
    chip.style.setProperty("--hue", hues.get(dtype));
    chip.addEventListener("click", () => {
      const others = $("search").value.split(/\s+/).filter((other) => other && other.toLowerCase() !== word);
      if (chip.getAttribute("aria-pressed") === "false") others.push(`dtype:${dtype}`);
      $("search").value = others.join(" ");
      search();
    });
    $("dtypes").append(chip);
  }
  if (data.metadata.length) {
    $("metadata").textContent = data.metadata.map(([key, value]) => `${key}: ${value}`).join(" · ");
    $("metadata").title = $("metadata").textContent.slice(0, 2000);
    $("metadata").hidden = false;
  }
  const heads = [["", "name"], ["dtype", "dtype"], ["shape", "shape"], ["number", "parameters"], ["number bytes", "size"], ["", "share"]];
  if (data.hasStats) heads.push(...[...STATS, "NaN, Inf"].map((key) => ["number stat", key]));
  $("heads").replaceChildren(...heads.map(([className, text]) => element("span", className, text)));
  document.body.classList.toggle("stats", data.hasStats);
}

let scheduled = false;
function drawSoon() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    draw();
  });
}
$("scroller").addEventListener("scroll", drawSoon, { passive: true });
addEventListener("resize", drawSoon);

drawHeader();
$("fold").setAttribute("aria-pressed", folding);
setAll(true);
if (rows.length > OPEN_AT_FIRST) {
  setAll(false);
  for (const { node } of rows) if (node.entries && rows.length < OPEN_AT_FIRST) opened.add(node);
  refresh();
}
$("tree").focus({ preventScroll: true });
performance.mark("drawn");
