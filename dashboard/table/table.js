// A table whose rows are known by key: ticks and orders survive filters, other pages and new rows.

const shown = new WeakMap();

export default function (component) {
  const { data, parentElement: root, setTriggerValue } = component;
  const table = shown.get(root) ?? { frame: root.querySelector(".frame") };
  shown.set(root, table);
  table.send = setTriggerValue;
  const text = JSON.stringify(data);
  if (table.text !== text) {
    table.text = text;
    draw(table, data);
  }
  return () => shown.delete(root);
}

function draw(table, data) {
  const { frame } = table;
  const at = focused(frame);
  frame.setAttribute("aria-label", data.label);
  frame.classList.toggle("dense", Boolean(data.dense));
  frame.querySelector("caption").textContent = data.label;
  frame.querySelector("thead").replaceChildren(header(table, data));
  frame.querySelector("tbody").replaceChildren(...data.rows.map((row) => line(table, data, row)));
  if (at) [...frame.querySelectorAll("[data-at]")].find((one) => one.dataset.at === at)?.focus();
}

function focused(frame) {
  return frame.getRootNode().activeElement?.dataset?.at;
}

function header(table, data) {
  const row = made("tr");
  if (data.ticks) row.append(allTicks(table, data));
  for (const column of data.columns) {
    const cell = made("th", column.number ? "number" : "");
    cell.scope = "col";
    if (column.chosen) cell.setAttribute("aria-sort", column.down ? "descending" : "ascending");
    const mark = column.chosen ? (column.down ? " ▾" : " ▴") : "";
    if (column.sorts) {
      const button = made("button", "", column.label + mark);
      button.type = "button";
      button.dataset.at = `sort ${column.key}`;
      button.title = column.help;
      button.addEventListener("click", () => table.send("sorted", column.key));
      cell.append(button);
    } else {
      cell.textContent = column.label;
      cell.title = column.help;
    }
    row.append(cell);
  }
  return row;
}

function allTicks(table, data) {
  const cell = made("td", "tick"); // it heads no column
  const free = data.rows.filter((row) => !row.reason || row.ticked);
  const box = checkbox("all", "All rows of this page", free.length > 0 && free.every((row) => row.ticked), !free.length);
  box.addEventListener("change", () => {
    for (const one of table.frame.querySelectorAll("tbody input:not([disabled])")) one.checked = box.checked;
    tell(table);
  });
  cell.append(box);
  return cell;
}

function line(table, data, row) {
  const made_ = made("tr", [row.ticked ? "ticked" : "", row.reason ? "grey" : ""].join(" ").trim());
  if (data.ticks) {
    const cell = made("td", "tick");
    const name = row.cells[0]?.text ?? row.key;
    const box = checkbox(row.key, row.reason ? `${name}, cannot be ranked with these: ${row.reason}` : name, row.ticked, Boolean(row.reason) && !row.ticked);
    box.title = row.reason;
    box.addEventListener("change", () => tell(table));
    cell.append(box);
    made_.append(cell);
  }
  row.cells.forEach((one, i) => made_.append(cellOf(table, data, row, one, i)));
  return made_;
}

function cellOf(table, data, row, one, i) {
  const column = data.columns[i];
  const cell = made(i === 0 ? "th" : "td", [column.number ? "number" : "", one.hatched ? "hatched" : "", column.chosen ? "chosen" : ""].join(" ").trim());
  if (i === 0) cell.scope = "row";
  const value = made("span", one.strong ? "value strong" : "value", one.text);
  if (i === 0 && data.opens) {
    const button = made("button");
    button.type = "button";
    button.dataset.at = `open ${row.key}`;
    button.append(value);
    button.addEventListener("click", () => table.send("opened", row.key));
    cell.append(button);
  } else if (one.key) {
    const button = made("button", "whole");
    button.type = "button";
    button.dataset.at = `open ${one.key}`;
    button.setAttribute("aria-label", one.words || one.text);
    button.setAttribute("aria-pressed", String(one.chosen));
    button.append(value);
    button.addEventListener("click", () => table.send("opened", one.key));
    cell.append(button);
  } else cell.append(value);
  if (one.tint) Object.assign(cell.style, { background: one.tint, color: one.ink });
  if (one.small) cell.append(made("span", "small", one.small));
  if (one.words) {
    cell.title = one.words;
    if (!one.key) cell.setAttribute("aria-description", one.words);
  }
  return cell;
}

function checkbox(key, name, checked, disabled) {
  const box = Object.assign(made("input"), { type: "checkbox", checked, disabled });
  box.dataset.key = key;
  box.dataset.at = `tick ${key}`;
  box.setAttribute("aria-label", name);
  return box;
}

function tell(table) {
  const boxes = [...table.frame.querySelectorAll("tbody input")];
  table.send("ticked", { ticked: boxes.filter((b) => b.checked).map((b) => b.dataset.key), shown: boxes.map((b) => b.dataset.key) });
}

function made(name, kind = "", text = "") {
  const element = document.createElement(name);
  element.className = kind;
  element.textContent = text; // never as HTML: cells carry the names of runs
  return element;
}
