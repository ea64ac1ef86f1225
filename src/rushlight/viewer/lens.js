// Draws the logit lens in #data: a grid whose cells are selected with the mouse or the arrow keys.
const percent = (p) => `${(100 * p).toFixed(p < 0.1 ? 1 : 0)}%`;
const cells = []; // [block][position]
let selected = [data.blocks.length - 1, data.tokens.length - 1];

function select(block, position) {
  const [oldBlock, oldPosition] = selected;
  cells[oldBlock][oldPosition].setAttribute("aria-selected", "false");
  cells[oldBlock][oldPosition].tabIndex = -1;
  selected = [block, position];
  const cell = cells[block][position];
  cell.setAttribute("aria-selected", "true");
  cell.tabIndex = 0;
  $("where").textContent = `${data.blocks[block].path}, position ${data.first + position}, after ${data.tokens[position].text}`;
  $("top").replaceChildren(
    ...data.blocks[block].top[position].map(({ text, p }) => {
      const item = element("li");
      item.append(element("b", "", text), ` ${percent(p)}`);
      return item;
    }),
  );
}

function draw() {
  $("heading").textContent = data.model;
  const heads = element("tr");
  heads.append(element("th"), ...data.tokens.map(({ text }) => element("th", "", text)));
  const head = element("thead");
  head.append(heads);

  const last = data.blocks[data.blocks.length - 1];
  const body = element("tbody");
  data.blocks.forEach(({ path, top }, block) => {
    const row = element("tr");
    row.append(element("th", "", path));
    cells.push(
      top.map(([best], position) => {
        const agrees = block < data.blocks.length - 1 && best.id === last.top[position][0].id;
        const cell = element("td", agrees ? "agrees" : "", best.text);
        cell.style.setProperty("--p", best.p);
        cell.tabIndex = -1;
        cell.setAttribute("role", "gridcell");
        cell.setAttribute("aria-label", `${path}, after ${data.tokens[position].text}: ${best.text}, ${percent(best.p)}`);
        cell.addEventListener("focus", () => select(block, position));
        row.append(cell);
        return cell;
      }),
    );
    body.append(row);
  });
  $("lens").append(head, body);
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
$("lens").addEventListener("keydown", (event) => {
  const step = STEPS[event.key];
  const cell = step && cells[selected[0] + step[0]]?.[selected[1] + step[1]];
  if (!cell) return;
  event.preventDefault();
  cell.focus();
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
});

draw();
showMore($("scroller"));
select(...selected);
cells[selected[0]][selected[1]].focus({ preventScroll: false });
