// A dot plot whose rows are buttons: read by a screen reader, walked by Tab, opened by Enter.

const shown = new WeakMap();

export default function (component) {
  const { data, parentElement: root, setTriggerValue } = component;
  const plot = shown.get(root) ?? { element: root.querySelector(".plot") };
  shown.set(root, plot);
  plot.open = (name) => setTriggerValue("opened", name);
  const text = JSON.stringify(data);
  if (plot.text !== text) {
    plot.text = text;
    draw(plot, data);
  }
  return () => shown.delete(root);
}

function draw(plot, data) {
  const find = (name) => plot.element.querySelector(name);
  const at = (value) => `${(100 * (value - data.low)) / (data.high - data.low)}%`;
  plot.element.setAttribute("aria-label", data.words);
  for (const [name, colour] of Object.entries({ mark: data.ink.mark, grid: data.ink.grid })) plot.element.style.setProperty(`--${name}`, colour);
  plot.element.style.setProperty("--longest", `${Math.min(18, Math.max(6, 0.55 * Math.max(...data.rows.map((r) => r.name.length)) + 1))}rem`);
  find(".rows").replaceChildren(...data.rows.map((row) => drawRow(plot, row, data, at)));
  find(".levels").replaceChildren(...data.ticks.map((value) => made("div", "grid", "", { left: at(value) })), ...data.levels.map((level) => drawLevel(level, at)));
  find(".axis").replaceChildren(...data.ticks.map((value) => made("span", "", String(Number(value.toFixed(3))), { left: at(value) })));
  find(".title").textContent = data.title;
}

function drawRow(plot, row, data, at) {
  const item = made("li");
  const button = made("button", "row");
  button.type = "button";
  button.disabled = !data.opens;
  button.setAttribute("aria-label", row.words);
  button.title = row.words;
  button.addEventListener("click", () => plot.open(row.name));
  const track = made("span", "track");
  if (row.mean !== null) {
    if (row.low !== null) track.append(made("span", "bar", "", { left: at(row.low), width: `calc(${at(row.high)} - ${at(row.low)})` }));
    track.append(made("span", "dot", "", { left: at(row.mean) }), ...row.seeds.map((value) => made("span", "seed", "", { left: at(value) })));
  }
  track.append(made("span", "value", row.label, { left: at(Math.max(row.high ?? row.mean ?? data.low, ...row.seeds)) }));
  button.append(made("span", "name", row.name), track);
  item.append(button);
  return item;
}

function drawLevel(level, at) {
  const line = made("div", "level", "", { left: at(level.value), "--ink": level.colour });
  line.append(made("span", "", level.name));
  return line;
}

function made(name, kind = "", text = "", style = {}) {
  const element = document.createElement(name);
  element.className = kind;
  element.textContent = text; // never as HTML: rows carry the names of variants
  for (const [key, value] of Object.entries(style)) element.style.setProperty(key, value);
  return element;
}
