const cards = [...document.querySelectorAll(".cards .card")];
const category = document.getElementById("category"), change = document.getElementById("change");
const words = document.getElementById("words"), count = document.getElementById("count");
const none = document.getElementById("none"), open_all = document.getElementById("open");
function show() {
  let shown = 0;
  const wanted = words.value.trim().toLowerCase();
  for (const card of cards) {
    const fits = (!category.value || card.dataset.category === category.value)
      && (!change.value || (change.value === "gap" ? "gap" in card.dataset : card.dataset.change === change.value))
      && (!wanted || card.dataset.prompt.includes(wanted));
    card.hidden = !fits; shown += fits;
  }
  count.textContent = shown + " of " + cards.length + " shown";
  none.hidden = shown > 0;
  const chosen = new URLSearchParams();
  for (const one of [category, change, words]) if (one.value) chosen.set(one.id, one.value);
  try { history.replaceState(null, "", "#" + chosen); } catch (error) { /* some viewers forbid it */ }
}
function restore() {
  const chosen = new URLSearchParams(location.hash.slice(1));
  for (const one of [category, change, words]) {
    one.value = chosen.get(one.id) || "";
    if (one.selectedIndex === -1) one.value = "";
  }
  show();
}
for (const one of [category, change, words]) one.addEventListener("input", show);
addEventListener("hashchange", restore);
open_all.addEventListener("input", () => {
  for (const one of document.querySelectorAll(".cards details")) one.open = open_all.checked;
});
restore();
