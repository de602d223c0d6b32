// Makes elements. Text goes in as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** An element with attributes (`class`, `on…` handlers, true for empty ones) and children: nodes or strings. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Give a select its options: [value, what is shown]. Keeps what was chosen where it is still there. */
export function fill(select, options, chosen = select.value) {
  select.replaceChildren(...options.map(([value, shown]) => el("option", { value }, shown)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
